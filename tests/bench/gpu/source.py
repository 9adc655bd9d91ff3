"""A process that makes events of the bench's shop and sends them when it is told: evenly, or all at once."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from confluent_kafka import Producer

from deploy.local.config import ProjectSettings
from schemas.settings import load_settings
from tests.bench.backlog import fill
from tests.bench.feed import READY, Fed, send
from tests.bench.world import Shop

USERS = 200_000


def be_source(topic: str, rate: float, count: int, seed: int, items: int, from_ms: int, newest: Path) -> None:
    """Be the process; rate 0 is all at once. newest: where each user's newest event time goes, int64[USERS]."""
    events = Shop(seed, USERS, items, from_ms).events(count)
    known = np.zeros(USERS, np.int64)
    np.maximum.at(known, events.user, events.event_time)
    np.save(newest, known)
    evenly = {"acks": "all", "linger.ms": 1}
    at_once = {"acks": 1, "linger.ms": 20, "batch.size": 2**19, "queue.buffering.max.messages": 500_000}
    producer = Producer(
        {"bootstrap.servers": load_settings(ProjectSettings).kafka.bootstrap, **(evenly if rate else at_once)}
    )
    producer.list_topics(topic, timeout=10)
    print(READY, flush=True)
    sys.stdin.readline()
    began = time.time()
    if rate:
        fed = send(producer, topic, events.keys, events.values, rate)
    else:
        fill(producer, topic, events)
        fed = Fed(count, began * 1000, time.time() * 1000, 0.0)
    print(json.dumps(vars(fed)), flush=True)


if __name__ == "__main__":
    topic, rate, count, seed, items, from_ms, newest = sys.argv[1:]
    be_source(topic, float(rate), int(count), int(seed), int(items), int(from_ms), Path(newest))
