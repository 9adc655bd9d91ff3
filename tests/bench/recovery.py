"""(e) After kill -9: how long until every user's row is current again, while events go on arriving.

Events come at a steady rate; in the midst of them processes are killed; the feed goes on for AFTER_S more. The clock
runs from the kill to the moment at which each user's row knows the user's last event of the whole feed, as a reader
sees it: what was lost, what waited, and what came while the system was down. AFTER_S is therefore the least possible.
Killed are
    the TaskManager     its supervisor brings another
    everything          supervisor, JobManager and TaskManager; whoever watches the machine starts them again at once
    the tuned consumer  and started again at once; its rows become current, but what it knew of its users is gone
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil

from tests.bench.backlog import fill
from tests.bench.figures import spread
from tests.bench.freshness import SETTLE_S
from tests.bench.lab import Lab
from tests.bench.report import Run, show
from tests.bench.steady import Steady
from tests.bench.systems import Job, System, TunedConsumer, session
from tests.bench.world import Shop

RATE = 300
BEFORE_S, AFTER_S = 3.0, 3.0
TRIES, TRIES_QUICK = 3, 1
PATIENCE_S = 180.0
WARM_UP_EVENTS = 10_000


def one(system: System, kill: Callable[[], None]) -> float:
    """Seconds from the kill until every row is current."""
    feed = Steady(system.producer, system.clicks, Shop(time.time_ns() % 2**32), RATE)
    feed.send_for(BEFORE_S)
    began = time.time()
    kill()
    feed.send_for(AFTER_S)
    system.producer.flush(30)
    return system.reader.wait_all(feed.newest, PATIENCE_S) - began


def kill_taskmanager(job: Job) -> None:
    """As a crash would; the supervisor answers."""
    job.stack.kill("taskmanager-1")


def kill_everything(job: Job) -> None:
    """The supervisor too, and then what `up` does."""
    job.stack.supervisor.kill()
    processes = job.processes()
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)  # until then their ports are taken
    job.resume()
    job.stack.start_supervisor()


def kill_consumer(consumer: TunedConsumer) -> None:
    """And start it again."""
    for process in consumer.processes():
        process.kill()
        process.wait()
    consumer.launch()


def measure(quick: bool) -> None:
    """Run, print and write down everything."""
    run = Run("recovery", quick)
    found: dict[str, list[float]] = {}
    tries = TRIES_QUICK if quick else TRIES
    with Lab(run) as lab:
        job = Job(lab.stack, lab.namespace(), lab.release)
        consumer = TunedConsumer(lab.stack, lab.namespace(), lab.release)
        faults: list[tuple[System, dict[str, Callable[[], None]]]] = [
            (job, {"TaskManager": lambda: kill_taskmanager(job), "everything": lambda: kill_everything(job)}),
            (consumer, {"tuned consumer (its state is lost)": lambda: kill_consumer(consumer)}),
        ]
        for system, kills in faults:
            with session(system):
                if isinstance(system, Job):
                    system.stack.start_supervisor()
                warm = Shop(31).events(WARM_UP_EVENTS)
                fill(system.producer, system.clicks, warm)
                system.reader.wait_all(warm.newest(), PATIENCE_S)
                time.sleep(job.stack.plan.checkpoint_s + SETTLE_S)  # at least one checkpoint
                for _ in range(tries):
                    for name, kill in kills.items():
                        found.setdefault(name, []).append(one(system, kill))
                        run.say(f"kill -9 of {name}: every row is current after {found[name][-1]:.1f} s")
                        time.sleep(job.stack.plan.checkpoint_s + SETTLE_S)
    show(
        "seconds from kill -9 until every user's row is current",
        ["killed", "median (least–most)"],
        [(name, spread(values)) for name, values in found.items()],
    )
    settings: dict[str, Any] = {"events_per_second": RATE, "feed_goes_on_for_s": AFTER_S}
    run.write({"settings": settings, "seconds": {name: spread(values) for name, values in found.items()}})
