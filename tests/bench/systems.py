"""The systems under comparison behind one face: start, freeze while a topic is filled, thaw, stop.

Each session has a namespace of its own, so it begins with empty topics, an empty table and no state. All of them write
their acknowledgements to a file (acks.py) and their rows to the same Cassandra.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from confluent_kafka import Producer

from deploy.local.config import REPOSITORY
from deploy.local.metrics import job_metrics
from deploy.local.process import Process
from deploy.local.stack import Stack
from deploy.local.tables import create_tables
from deploy.local.topics import create_topics
from schemas.release import encode_release
from schemas.settings import CommonSettings
from schemas.topics import CLICKS, MODEL_RELEASES
from tests.bench.acks import VARIABLE
from tests.bench.reader import Reader
from tests.bench.world import Shop, announcement
from trainer.publish import Release

BENCH = REPOSITORY / "tests" / "bench"
# A system on a busy machine may take its time to come up; one that does not is broken.
PATIENCE_S = 120.0
PARTITIONS = 2
MIB = 1024**2
# Metrics are at most this old when they are asked for twice.
METRICS_S = 2.5


@dataclass(frozen=True)
class Usage:
    """CPU seconds used so far and memory held now, bytes, by a system's own processes."""

    cpu_s: float
    memory: int


class System(ABC):
    """One system in one session."""

    name: str

    def __init__(self, stack: Stack, namespace: str, release: Release) -> None:
        common = stack.settings
        self.stack = stack
        self.release = release
        self.settings = CommonSettings(namespace=namespace, kafka=common.kafka, cassandra=common.cassandra)
        self.acks = stack.state / f"{namespace}.acks"
        self.env = {**stack.environment, "FRESHREC_NAMESPACE": namespace, VARIABLE: str(self.acks)}
        create_topics(self.settings, PARTITIONS)
        create_tables(self.settings)
        self.reader = Reader(self.settings)
        # Its servers end before it does; what it has to say of that is no news.
        quiet = {"log_level": 0}
        kafka = {"bootstrap.servers": self.settings.kafka.bootstrap, "acks": "all", "linger.ms": 1}
        self.producer = Producer({**kafka, **quiet})

    @property
    def clicks(self) -> str:
        """The topic it reads."""
        return self.settings.topic(CLICKS)

    @abstractmethod
    def start(self) -> None:
        """Start it; rows of the model come when this returns."""

    @abstractmethod
    def stop(self) -> None:
        """End its processes."""

    @abstractmethod
    def processes(self) -> list[psutil.Process]:
        """The processes that are its own, not those of Kafka and Cassandra."""

    def workers(self) -> list[psutil.Process]:
        """Those that touch events."""
        return self.processes()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Its workers stand still meanwhile; some seconds only, or Flink takes them for dead."""
        workers = self.workers()
        for worker in workers:
            worker.suspend()
        try:
            yield
        finally:
            for worker in workers:
                worker.resume()

    def usage(self) -> Usage:
        cpu, memory = 0.0, 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu += times.user + times.system
                memory += process.memory_info().rss
        return Usage(cpu, memory)

    def close(self) -> None:
        """Stop it and drop what it wrote."""
        try:
            self.producer.flush(10)
            self.stop()
        finally:
            self.reader.drop()
            self.reader.close()
            self.acks.unlink(missing_ok=True)

    def _serves(self) -> None:
        """Wait until an event becomes a row of the model."""
        deadline = time.monotonic() + PATIENCE_S
        shop = Shop(time.time_ns() % 2**32, users=1)
        user = "user-0000000"
        while True:
            event = shop.events(1)
            self.producer.produce(self.clicks, event.values[0], event.keys[0])
            self.producer.flush(10)
            with contextlib.suppress(TimeoutError):
                self.reader.wait(user, int(event.event_time[0]), patience_s=3.0)
                if self.reader.source(user) == "model":
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name} writes no row of the model within {PATIENCE_S:.0f} s")


class _OnFlink(System):
    """A job on a Flink cluster of the stack. workers: parallelism, when the stack has so many TaskManagers."""

    entry: Path
    arguments: tuple[str, ...] = ()

    def __init__(self, stack: Stack, namespace: str, release: Release, parallelism: int = 1) -> None:
        super().__init__(stack, namespace, release)
        self.env["FRESHREC_STREAMING__PARALLELISM"] = str(parallelism)
        # Its peers never grow either: shards for TaskManagers to come would cost it micro-batches.
        self.env["FRESHREC_STREAMING__LARGEST_PARALLELISM"] = str(parallelism)
        # Releases of a benchmark have learned nothing: their lists have nothing in common.
        self.env["FRESHREC_STREAMING__LEAST_OVERLAP"] = "0"

    def start(self) -> None:
        shutil.rmtree(self.stack.state / "flink" / "checkpoints", ignore_errors=True)
        self.resume()
        self._announce()
        self._serves()

    def resume(self) -> None:
        """Start the job from its newest checkpoint."""
        self.stack.start_flink(self.entry, self.arguments, env=self.env)

    def stop(self) -> None:
        self.stack.supervisor.stop()
        self.stack.stop_flink()

    def processes(self) -> list[psutil.Process]:
        names = [name for name in self.stack.plan.wanted if name == "jobmanager" or name.startswith("taskmanager")]
        return [process for name in names for process in _family(self.stack.server(name).process)]

    def workers(self) -> list[psutil.Process]:
        names = [name for name in self.stack.plan.wanted if name.startswith("taskmanager")]
        return [process for name in names for process in _family(self.stack.server(name).process)]

    def _announce(self) -> None:
        """A job whose model comes by message is told of it here."""


class Job(_OnFlink):
    """The project's job, with one TaskManager unless said otherwise."""

    name = "job"
    entry = BENCH / "observed.py"

    def _announce(self) -> None:
        self.publish(self.release)

    def publish(self, release: Release) -> None:
        """Announce a release."""
        topic = self.settings.topic(MODEL_RELEASES)
        self.producer.produce(topic, encode_release(announcement(release)), release.manifest.version.encode())
        self.producer.flush(10)


class Tutorial(_OnFlink):
    """PyFlink as in the tutorials."""

    name = "PyFlink tutorial"
    entry = BENCH / "peers" / "tutorial.py"

    def __init__(self, stack: Stack, namespace: str, release: Release) -> None:
        super().__init__(stack, namespace, release)
        self.arguments = (str(release.folder),)


class TunedConsumer(System):
    """The tuned plain consumer."""

    name = "tuned consumer"

    def start(self) -> None:
        self.launch()
        self._serves()

    def launch(self) -> None:
        """Start its process; it reads when this returns."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.peers.tuned", str(self.release.folder)],
            env={**os.environ, **self.env, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"the tuned consumer ended with code {self._process.wait()} before it was ready")

    def stop(self) -> None:
        process = getattr(self, "_process", None)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(self._process.pid)]


def _family(process: Process) -> list[psutil.Process]:
    """A process of the stack and all it started; none when it is down."""
    try:
        leader = psutil.Process(process.pid or -1)
        return [leader, *leader.children(recursive=True)]
    except (psutil.Error, ValueError):
        return []


def present_counts(system: System, names: Iterable[str]) -> Counter[str]:
    """Its job's own counters, as they are now: the second answer of Flink's is a present one."""
    job_metrics(system.stack.rest, names)
    time.sleep(METRICS_S)
    return job_metrics(system.stack.rest, names)


@contextmanager
def session(system: System) -> Iterator[System]:
    """Started, and in the end closed, whatever happens."""
    try:
        system.start()
        yield system
    finally:
        system.close()
