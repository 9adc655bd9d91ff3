"""The tuned plain consumer: what a good engineer writes without Flink. One process, its state in memory.

    BENCH_ACKS=FILE python -m tests.bench.peers.tuned RELEASE_FOLDER        (servers as in the project's settings)

Batches of events are decoded in columns, states lie in one numpy array, all users of a batch are scored at once, rows
go out in wire form, in unlogged batches, while the next events are already worked on. Offsets are stored after the
acknowledgement: a crash loses no row, but the state, and with it every history that is not read again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnxruntime
from confluent_kafka import Consumer, Message, TopicPartition
from numpy.typing import NDArray

from deploy.local.config import ProjectSettings
from schemas.click import Clicks, decode_clicks
from schemas.features import Vocabulary, model_inputs
from schemas.release import ITEMS, MODEL, OUTPUT_INDEX, OUTPUT_SCORE
from schemas.settings import CommonSettings, load_settings
from schemas.topics import CLICKS
from schemas.user_state import USER_STATE, States, apply_events, empty_states, history
from tests.bench.acks import AckLog
from tests.bench.peers.driver import RawDriver

# After the first event of a batch, more are waited for so long: 0 takes what is there, and so grows with the load.
LINGER_S = 0.0
MOST_EVENTS = 2_000
# Users scored at once; beyond this nothing gets faster.
SCORED_AT_ONCE = 256
# Batches of events whose rows are on their way while the next one is worked on.
IN_FLIGHT = 3
TTL = (90 * 24 * 3600).to_bytes(4, "big")
READY = "ready"
# numpy copies records of bytes many times faster than records of fields.
_RECORD = np.dtype((np.void, USER_STATE.itemsize))


class Model:
    """The release's graph, and the item ids in the wire form of list elements."""

    def __init__(self, folder: Path) -> None:
        self.version = folder.name.encode()
        ids = (folder / ITEMS).read_text().split("\n")[:-1]
        self.vocabulary = Vocabulary(ids)
        self.parts = np.array([b"", *(len(raw).to_bytes(4, "big") + raw for raw in map(str.encode, ids))], np.object_)
        self.available = np.ones(len(ids) + 1, np.bool_)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) - 1)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]

    def lists(self, states: States) -> tuple[list[bytes], list[bytes]]:
        """Item ids and scores of each user, in wire form."""
        ids: list[bytes] = []
        scores: list[bytes] = []
        for start in range(0, len(states), SCORED_AT_ONCE):
            inputs = {
                **model_inputs(states[start : start + SCORED_AT_ONCE], self.vocabulary),
                "available": self.available,
            }
            index, score = self._session.run([OUTPUT_INDEX, OUTPUT_SCORE], {n: inputs[n] for n in self._inputs})
            shown = np.isfinite(score)
            elements = np.empty(score.shape, [("size", ">i4"), ("value", ">f4")])
            elements["size"], elements["value"] = 4, score
            parts = self.parts[index]
            for row, count in enumerate(shown.sum(axis=1).tolist()):
                length = count.to_bytes(4, "big")
                ids.append(length + b"".join(parts[row, :count].tolist()))
                scores.append(length + elements[row, :count].tobytes())
        return ids, scores


class Users:
    """Every user's state, in one array that doubles when it is full."""

    def __init__(self) -> None:
        self._records = empty_states(1024).view(_RECORD)
        self._slot: dict[str, int] = {}

    def update(self, clicks: Clicks) -> tuple[list[str], States]:
        """Add events; returns the users they are of, and their states."""
        _, first, user_index = np.unique(clicks.user_hash, return_index=True, return_inverse=True)
        user_ids = clicks.texts(clicks.user, first)
        slot = self._slot
        slots = np.array([slot.setdefault(user, len(slot)) for user in user_ids], np.int64)
        while len(slot) > len(self._records):
            self._records = np.concatenate((self._records, empty_states(len(self._records)).view(_RECORD)))
        states = self._records[slots].view(USER_STATE)
        apply_events(states, user_index, clicks)
        states["last_write"] = np.maximum(states["last_write"] + 1, time.time_ns() // 1000)
        self._records[slots] = states.view(_RECORD)
        return user_ids, states


class Batch:
    """Rows on their way: done when every one of their batches is acknowledged."""

    def __init__(self, produced: NDArray[np.int64], ends: list[TopicPartition], acks: AckLog) -> None:
        self.ends = ends
        self.done = threading.Event()
        self.error: Exception | None = None
        self._produced = produced
        self._acks = acks
        self._lock = threading.Lock()
        self._open = 0

    def watch(self, futures: list[Any]) -> None:
        self._open = len(futures)
        for future in futures:
            future.add_callbacks(self._acknowledged, self._failed)

    def _acknowledged(self, _rows: Any) -> None:
        with self._lock:
            self._open -= 1
            last = not self._open
        if last:
            self._acks.count(self._produced)
            self.done.set()

    def _failed(self, error: Exception) -> None:
        self.error = error
        self.done.set()


class Tuned:
    """consume ▸ decode ▸ update ▸ score ▸ write."""

    def __init__(self, settings: CommonSettings, release: Path) -> None:
        self._model = Model(release)
        self._users = Users()
        self._driver = RawDriver(settings)
        self._acks = AckLog()
        self._flying: deque[Batch] = deque()
        self._stopping = False
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.kafka.bootstrap,
                "group.id": f"tuned-{settings.namespace}",
                # Started again after a crash it is the same member, and need not wait for itself to be missed.
                "group.instance.id": "tuned-1",
                "auto.offset.reset": "earliest",
                "enable.auto.offset.store": False,  # stored when acknowledged, committed in the background
                "auto.commit.interval.ms": 1000,
                "fetch.wait.max.ms": 20,
                "fetch.min.bytes": 1,
                "queued.min.messages": 50_000,
            }
        )
        self._consumer.subscribe([settings.topic(CLICKS)])

    def run(self) -> None:
        """Until TERM or INT."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        print(READY, flush=True)
        while not self._stopping:
            messages = self._consumer.consume(1, 0.05)
            if messages:
                messages += self._consumer.consume(MOST_EVENTS - 1, LINGER_S)
                self._work(messages)
            while self._flying and (len(self._flying) > IN_FLIGHT or self._flying[0].done.is_set()):
                self._finish(self._flying.popleft())
        for batch in self._flying:
            self._finish(batch)
        self._consumer.close()
        self._driver.close()

    def _work(self, messages: list[Message]) -> None:
        values = [message.value() for message in messages]
        keys = [message.key() for message in messages]
        clicks, _ = decode_clicks(values, keys, int(time.time() * 1000))
        if not len(clicks):
            return
        produced = np.array([messages[place].timestamp()[1] for place in clicks.positions.tolist()], np.int64)
        user_ids, states = self._users.update(clicks)
        ids, scores = self._model.lists(states)
        now = int(time.time() * 1000).to_bytes(8, "big")
        event_time = history(states, "event_time")[:, -1].astype(">i8").tobytes()
        written = states["last_write"].astype(">i8").tobytes()
        version = self._model.version
        rows = [
            [user.encode(), i, s, b"model", version, event_time[p : p + 8], now, TTL, written[p : p + 8]]
            for user, i, s, p in zip(user_ids, ids, scores, range(0, 8 * len(user_ids), 8), strict=True)
        ]
        batch = Batch(produced, _ends(messages), self._acks)
        batch.watch(self._driver.send(rows))
        self._flying.append(batch)

    def _finish(self, batch: Batch) -> None:
        batch.done.wait()
        if batch.error is not None:
            raise batch.error  # offsets are not stored: what was not written is read again
        self._consumer.store_offsets(offsets=batch.ends)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True


def _ends(messages: list[Message]) -> list[TopicPartition]:
    """Where each partition goes on after these messages."""
    ends = {(message.topic(), message.partition()): message.offset() for message in messages}
    return [TopicPartition(topic, partition, offset + 1) for (topic, partition), offset in ends.items()]  # type: ignore[arg-type, operator]


if __name__ == "__main__":
    Tuned(load_settings(ProjectSettings), Path(sys.argv[1])).run()
