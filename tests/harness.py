"""A running job for a test: its own topics and keyspace on real servers, and a user's ways to talk to it."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from cassandra import DriverException
from cassandra.cluster import NoHostAvailable
from confluent_kafka import Producer

from deploy.local.accounts import grant
from deploy.local.config import REPOSITORY, load_local_settings
from deploy.local.metrics import job_metrics
from deploy.local.stack import Stack
from deploy.local.tables import create_tables
from deploy.local.topics import create_topics
from schemas.click import Click, encode_click
from schemas.dead_letter import DeadLetter, decode_dead_letter
from schemas.item import Item, encode_item
from schemas.release import ModelRelease, encode_release
from schemas.settings import CommonSettings
from schemas.topics import CLICKS, DEAD_LETTERS, ERASURES, ITEMS, MODEL_RELEASES
from streaming.table import connect
from streaming.topic import messages
from tests.oracle import Oracle

JOB = REPOSITORY / "streaming" / "job.py"
# A job that is right but slow on a busy machine still passes; one that is stuck does not.
PATIENCE_S = 90.0
SCORE_TOLERANCE = 1e-3
_EPOCH = datetime(1970, 1, 1)


@contextmanager
def servers(state: Path, secure: bool) -> Iterator[Stack]:
    """Kafka and Cassandra in a folder, on free ports, stopped at the end.

    Tests wait for checkpoints: they are many. Tests kill Cassandra and hold it to what it acknowledged: it is durable.
    A session left open would look for its server, at random moments, for as long as tests run: none may be left.
    """
    before = _open_sessions()
    local = load_local_settings(state=state, checkpoint_s=2, durable=True, secure=secure)
    stack = Stack.create(local, free_ports=True)
    try:
        stack.start_servers(print)
        yield stack
        assert _open_sessions() <= before, "a test left a session of Cassandra's driver open"
    finally:
        stack.stop(print)


def _open_sessions() -> int:
    """How many connected clusters the driver keeps in this process: each has a thread of this name."""
    return sum(thread.name == "Task Scheduler" for thread in threading.enumerate())


@dataclass
class Row:
    """A row of `recommendations` or `trending`, times in ms, write time in µs."""

    item_ids: list[str]
    scores: list[float]
    source: str
    model_version: str
    event_time: int
    write_time: int


class RunningJob:
    """The job on a stack, and everything around it under one namespace."""

    def __init__(self, stack: Stack, namespace: str, env: dict[str, str] | None = None) -> None:
        self.stack = stack
        self.namespace = namespace
        # Releases made for tests rank everything differently, so that no row can be taken for another's.
        self._env = {"FRESHREC_NAMESPACE": namespace, "FRESHREC_STREAMING__LEAST_OVERLAP": "0", **(env or {})}
        # For commands of the project on the same servers.
        self.environment = {**os.environ, **stack.environment, **self._env, "PYTHONPATH": str(REPOSITORY)}
        common = stack.settings
        self.settings = CommonSettings(namespace=namespace, kafka=common.kafka, cassandra=common.cassandra)
        create_topics(self.settings, click_partitions=2)
        create_tables(self.settings)
        if stack.keys:
            grant(self.settings)
        self.session = connect(self.settings)
        self.producer = Producer({**self.settings.kafka.client(), "acks": "all", "linger.ms": 1})

    def start(self, **env: str) -> None:
        """Start the job from nothing; env is added to what it is given, this time only."""
        shutil.rmtree(self.stack.state / "flink" / "checkpoints", ignore_errors=True)
        self.resume(**env)

    def resume(self, **env: str) -> None:
        """Start the job from its newest checkpoint."""
        self.stack.start_flink(JOB, env={**self._env, **env})
        self.stack.start_supervisor()

    def halt(self) -> None:
        """Stop job and cluster for a while."""
        self.stack.supervisor.stop()
        self.stack.stop_flink()

    def serve(self, release: ModelRelease) -> None:
        """Announce a release and wait until rows are of it."""
        self.publish(release)

        def serves() -> bool:
            self.click([Click(f"probe-{time.time_ns()}", "probe", "item-000", int(time.time() * 1000))])
            row = self.row("probe")
            return row is not None and row.model_version == release.version

        self.eventually(f"release {release.version} serves", serves)

    def stop(self) -> None:
        """Stop job and cluster for good."""
        self.halt()
        self.leave()

    def leave(self) -> None:
        """Close what it was reached through."""
        self.session.cluster.shutdown()
        self.producer.close()

    # ── what producers do ────────────────────────────────────────────────────────────────────────

    def send(self, topic: str, key: bytes | None, value: bytes | None, partition: int = -1) -> tuple[int, int]:
        """Produce one record; returns partition and offset."""
        placed: list[tuple[int, int]] = []
        extra: dict[str, Any] = {"partition": partition} if partition >= 0 else {}
        self.producer.produce(
            self.settings.topic(topic),
            value,
            key,
            on_delivery=lambda error, m: (
                placed.append((m.partition() or 0, m.offset() or 0)) if error is None else None
            ),
            **extra,
        )
        self.producer.flush(30)
        return placed[0]

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """The TaskManager stands still meanwhile: some seconds only, or Flink takes it for dead."""
        worker = psutil.Process(self.stack.server("taskmanager-1").process.pid or -1)
        worker.suspend()
        try:
            yield
        finally:
            worker.resume()

    def click(self, clicks: Iterable[Click], per_second: float | None = None) -> None:
        """Produce clicks in order, as fast as they go or at a steady rate; returns when all are acknowledged."""
        started = time.monotonic()
        for number, click in enumerate(clicks):
            self.producer.produce(self.settings.topic(CLICKS), encode_click(click), click.user_id.encode())
            self.producer.poll(0)
            if per_second:
                time.sleep(max(0.0, started + number / per_second - time.monotonic()))
        assert self.producer.flush(60) == 0

    def publish(self, release: ModelRelease) -> None:
        """Announce a release."""
        self.send(MODEL_RELEASES, release.version.encode(), encode_release(release))

    def catalogue(self, items: Iterable[Item]) -> None:
        """Produce items."""
        for item in items:
            self.send(ITEMS, item.item_id.encode(), encode_item(item))

    def erase(self, user: str) -> None:
        """Ask for a user to be forgotten."""
        self.send(ERASURES, user.encode(), None)

    # ── what readers and operators see ───────────────────────────────────────────────────────────

    def row(self, user: str) -> Row | None:
        """A user's row."""
        return self._read("recommendations", "user_id", user)

    def trending(self) -> Row | None:
        """The row for users without one."""
        return self._read("trending", "scope", "all")

    def dead_letters(self) -> list[DeadLetter]:
        """All dead letters so far."""
        found = [decode_dead_letter(m.value()) for m in messages(self.settings, self.settings.topic(DEAD_LETTERS))]
        assert all(isinstance(letter, DeadLetter) for letter in found), found
        return [letter for letter in found if isinstance(letter, DeadLetter)]

    def metric(self, name: str) -> int:
        """A metric of the job, summed over its subtasks."""
        return job_metrics(self.stack.rest, [name])[name]

    def operator_names(self) -> list[str]:
        """Names of the job's tasks as Flink's page shows them."""
        rest = self.stack.rest
        return [vertex["name"] for vertex in rest.get(f"/jobs/{rest.jobs()[-1].id}")["vertices"]]

    # ── waiting ──────────────────────────────────────────────────────────────────────────────────

    def eventually(self, promise: str, holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Wait until `holds()`; fail with the promise when it does not in time."""
        deadline = time.monotonic() + patience_s
        while not holds():
            assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {promise}"
            time.sleep(0.2)

    def agree(
        self,
        oracle: Oracle,
        release: tuple[Sequence[str], Sequence[str], str],
        users: Iterable[str] = (),
    ) -> None:
        """Wait until every user's row is what the oracle says under the release (item ids, favourites, version)."""
        item_ids, favourites, version = release
        waiting = list(users) or list(oracle.events)
        deadline = time.monotonic() + PATIENCE_S
        trouble: dict[str, str] = {}
        while waiting:
            trouble = {}
            for user in waiting:
                expected = oracle.row(user, item_ids, favourites)
                try:
                    wrong = self._difference(self.row(user), expected, version)
                except (
                    DriverException,
                    NoHostAvailable,
                ) as error:  # Cassandra is down, or the driver has not noticed its return
                    wrong = str(error)
                if wrong:
                    trouble[user] = wrong
            waiting = list(trouble)
            assert not waiting or time.monotonic() < deadline, (
                f"{len(trouble)} users differ: {dict(list(trouble.items())[:3])}"
            )
            if waiting:
                time.sleep(0.3)

    @staticmethod
    def _difference(row: Row | None, expected: tuple[list[str], list[float], int], version: str) -> str:
        items, scores, event_time = expected
        if row is None:
            return "no row"
        if row.source != "model" or row.model_version != version:
            return f"row of {row.source} {row.model_version}"
        if row.event_time != event_time:
            return f"event time {row.event_time}, not {event_time}"
        if row.item_ids != items:
            return f"items {row.item_ids[:5]}…, not {items[:5]}…"
        worst = max((abs(a - b) for a, b in zip(row.scores, scores, strict=True)), default=0.0)
        return f"scores {worst} away" if worst > SCORE_TOLERANCE else ""

    def _read(self, table: str, key: str, value: str) -> Row | None:
        found = self.session.execute(
            f"SELECT item_ids, scores, source, model_version, event_time, WRITETIME(item_ids) AS written "
            f"FROM {self.settings.keyspace}.{table} WHERE {key} = %s",
            (value,),
        ).one()
        if found is None:
            return None
        return Row(
            found.item_ids or [],
            found.scores or [],
            found.source,
            found.model_version,
            ms_of(found.event_time),
            found.written,
        )


def ms_of(when: datetime) -> int:
    """A timestamp of Cassandra, which the driver gives in UTC and without saying so, as ms since 1970."""
    return round((when - _EPOCH).total_seconds() * 1000)
