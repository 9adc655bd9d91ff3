"""A steady producer in a process of its own: `python -m tests.bench.feed TOPIC RATE SECONDS SEED` with the settings'
servers. Encodes everything first and says "ready"; begins when a line comes in; says in the end how it went, as JSON.

Events leave one by one where the rate allows it, never more than 5 ms worth of them at once: bursts would be waits of
the producer's own making. The pauses are sleeps, so the cores stay for those who are measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from confluent_kafka import Producer

from deploy.local.config import REPOSITORY, ProjectSettings
from schemas.settings import load_settings
from tests.bench.world import Shop

# Waking more often than this costs more CPU than it smooths; with it 5 000 events/s leave ten at a time.
TICK_S = 0.002
READY = "ready"


@dataclass(frozen=True)
class Fed:
    """What was sent: how many, between which moments (ms since 1970), and how late the latest event was, ms."""

    events: int
    from_ms: float
    until_ms: float
    latest_ms: float


class Sender:
    """A process `python -m MODULE ORDER…` that gets ready, sends when it is told and says how it went."""

    def __init__(self, module: str, env: dict[str, str], *order: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, order)],
            env={**os.environ, **env, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        """Wait until it could send. Raises RuntimeError when it ends instead."""
        self._line()

    def begin(self) -> None:
        """Let it send."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def running(self) -> bool:
        return self._process.poll() is None

    def finish(self) -> Fed:
        """Wait for its end."""
        fed = Fed(**json.loads(self._line()))
        self._process.wait(30)
        return fed

    def close(self) -> None:
        """End it if it still runs."""
        if self.running():
            self._process.kill()
        self._process.wait()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the feeder ended with code {self._process.wait()}")
        return line


class Feeder(Sender):
    """This module's own process, ready to send."""

    def __init__(self, topic: str, env: dict[str, str], rate: float, seconds: float, seed: int) -> None:
        super().__init__("tests.bench.feed", env, topic, rate, seconds, seed)
        self.wait_ready()


def main() -> None:
    """Be the process."""
    topic, rate, seconds, seed = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    events = Shop(seed).events(int(rate * seconds))
    bootstrap = load_settings(ProjectSettings).kafka.bootstrap
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "linger.ms": 1})
    producer.list_topics(topic, timeout=10)  # connected before the clock runs
    print(READY, flush=True)
    sys.stdin.readline()
    fed = send(producer, topic, events.keys, events.values, rate)
    print(json.dumps(vars(fed)), flush=True)


def send(producer: Producer, topic: str, keys: list[bytes], values: list[bytes], rate: float) -> Fed:
    """Send them at the rate, from now on."""
    began, latest = time.time(), 0.0
    sent, count = 0, len(keys)
    while sent < count:
        now = time.time()
        due = min(count, int((now - began) * rate) + 1)
        if due > sent:
            latest = max(latest, now - began - sent / rate)
        for place in range(sent, due):
            producer.produce(topic, values[place], keys[place])
        sent = max(sent, due)
        producer.poll(0)
        time.sleep(max(TICK_S, began + sent / rate - time.time()))
    producer.flush(30)
    return Fed(count, began * 1000, time.time() * 1000, latest * 1000)


if __name__ == "__main__":
    main()
