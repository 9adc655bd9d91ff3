"""(d) Another model, again and again, under load: what a swap does to the flow of rows, and what many do to memory.

A steady feed; releases of equal size in rotation, three of them, so that each swap loads its model anew (the job keeps
the one before for a quick roll-back). The pause in output is the longest time between two acknowledged batches in the
second after an announcement, beside seconds of the same feed without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.bench.acks import read_acks
from tests.bench.backlog import fill
from tests.bench.feed import Feeder
from tests.bench.figures import longest_gaps, percentiles, spread
from tests.bench.freshness import SETTLE_S
from tests.bench.lab import Lab
from tests.bench.report import Run, show
from tests.bench.systems import MIB, Job, present_counts, session
from tests.bench.world import USERS, Shop
from tests.resident import Resident, resident
from trainer.publish import Release

SWAPS, SWAPS_QUICK = 500, 20
# What comes meanwhile fills users' records, RocksDB's cache and tables, with or without a swap: without one and without
# these beforehand, memory grew from 886 to 993 MiB in a quarter of an hour. As many as come during the swaps.
AGE, AGE_QUICK, AGE_AT_ONCE = 450_000, 30_000, 30_000
# A release is loaded, checked and warmed within this where a core is to be had, so that every announcement becomes a
# swap. On two slow and busy cores some are overtaken by the next one.
EVERY_S = 3.0
# Looking at a process's memory holds up the process for some 0.2 s, so it is not done after every swap.
LOOK_EVERY = 10
RATE = 300
CONTROL_S, CONTROL_QUICK_S = 30.0, 10.0
ROTATION = 3
# Until then the first models warm up and the JVM compiles: memory grows without any swap.
SETTLED = 100
# All users become known at a few thousand a second.
PATIENCE_S = 120.0
# What is promised: memory beside the Java heap (see tests/resident.py) grows by no more, and output never pauses for
# longer.
MOST_GROWTH, MOST_PAUSE_MS = 0.05, 250.0
COUNTED = ("score_swaps", "score_refused", "score_rolled_back")


@dataclass(frozen=True)
class Plan:
    """How often a model is announced, how long the feed goes on without one first, its events a second.

    age: events before the feed; see AGE.
    """

    swaps: int
    every_s: float = EVERY_S
    control_s: float = CONTROL_S
    rate: int = RATE
    age: int = AGE


@dataclass
class Found:
    """gaps: the longest in each second, ms, without and with a swap. memory: of the TaskManager, every LOOK_EVERY.

    counts: by name, see COUNTED. failures: how often the job had to begin anew.
    """

    gaps: dict[str, list[float]]
    memory: list[Resident]
    counts: dict[str, int]
    failures: int


def measure(quick: bool) -> None:
    """Run, print and write down everything."""
    run = Run("swap", quick)
    plan = Plan(SWAPS_QUICK, control_s=CONTROL_QUICK_S, age=AGE_QUICK) if quick else Plan(SWAPS)
    with Lab(run) as lab:
        releases = [lab.release, *(lab.new_release() for _ in range(ROTATION - 1))]
        job = Job(lab.stack, lab.namespace(), lab.release)
        with session(job):
            found = swapping(run, job, releases, plan)
    run.write(report(found, plan))


def swapping(run: Run, job: Job, releases: list[Release], plan: Plan, look: Callable[[], None] = lambda: None) -> Found:
    """Announce releases in turn under a steady feed. look: called whenever memory is looked at."""
    # Who is met for the first time stays in memory, whatever is swapped: so everybody is, before anything is looked at.
    shop = Shop(42)
    for before in (shop.one_each(0, USERS), *(shop.events(AGE_AT_ONCE) for _ in range(0, plan.age, AGE_AT_ONCE))):
        fill(job.producer, job.clicks, before)
        job.reader.wait_last(before.newest(), PATIENCE_S)
    # Somewhat longer than all of it takes: it ends when the swaps do.
    seconds = 1.2 * (2 * SETTLE_S + plan.control_s + plan.swaps * plan.every_s)
    feeder = Feeder(job.clicks, job.env, plan.rate, seconds, seed=41)
    try:
        feeder.begin()
        time.sleep(2 * SETTLE_S)
        calm = _seconds(time.time() * 1000, plan.control_s)
        time.sleep(plan.control_s)
        windows, memory = [], []
        for number in range(plan.swaps):
            announced = time.time()
            job.publish(releases[(number + 1) % len(releases)])
            windows += _seconds(announced * 1000, plan.every_s)
            time.sleep(max(0.0, announced + plan.every_s - time.time()))
            if number % LOOK_EVERY == LOOK_EVERY - 1:
                memory.append(_memory(job))
                look()
                run.say(f"{number + 1} swaps, {memory[-1].native / MIB:,.0f} MiB beside the Java heap")
        if not feeder.running():
            raise RuntimeError("the feed ended before the swaps did: pauses at the end are its own")
    finally:
        feeder.close()
    counts, failures = present_counts(job, COUNTED), _failures(job)
    _, acknowledged = read_acks(job.acks)
    moments = np.unique(acknowledged)
    gaps = {"without a swap": longest_gaps(moments, calm), "with a swap": longest_gaps(moments, windows)}
    return Found(gaps, memory, counts, failures)


def report(found: Found, plan: Plan) -> dict[str, Any]:
    """Tables, and what goes into JSON."""
    memory, counts, announced = found.memory, found.counts, plan.swaps
    # The first release of all is no swap of this benchmark.
    done = counts["score_swaps"] - 1
    pauses = {name: percentiles(np.array(values)) for name, values in found.gaps.items()}
    show(
        "longest pause in output in each second, ms",
        ["", "p50", "p99", "max", "seconds"],
        [(name, p.p50, p.p99, p.max, p.count) for name, p in pauses.items()],
    )
    settled = min(SETTLED, announced // 2)
    looked = settled // LOOK_EVERY
    first = spread([size.native / MIB for size in memory[looked : looked + 5]])
    last = spread([size.native / MIB for size in memory[-5:]])
    growth = last.median / first.median - 1
    show(
        f"memory of the TaskManager beside its Java heap, {done} of {announced} announced releases served",
        ["MiB", ""],
        [
            (f"after {settled} swaps", first),
            ("in the end", last),
            ("growth", f"{growth:+.1%}"),
            ("in the end with the heap", memory[-1].whole / MIB),
        ],
    )
    worst = pauses["with a swap"].max
    held = {
        f"every release announced was served ({announced})": (done, done == announced),
        "none was refused or rolled back": (lost := counts["score_refused"] + counts["score_rolled_back"], lost == 0),
        "no micro-batch failed": (found.failures, found.failures == 0),
        f"output never paused longer than {MOST_PAUSE_MS:.0f} ms": (f"{worst:.0f} ms", worst <= MOST_PAUSE_MS),
        f"memory grew by no more than {MOST_GROWTH:.0%}": (f"{growth:+.1%}", growth <= MOST_GROWTH),
    }
    show(
        "what is promised",
        ["", "found", "held"],
        [(promise, was, "yes" if kept else "no") for promise, (was, kept) in held.items()],
    )
    return {
        "held": {promise: kept for promise, (_, kept) in held.items()},
        "settings": {
            "events_per_second": plan.rate,
            "announced": announced,
            "seconds_between": plan.every_s,
            "settled": settled,
        },
        "swaps_served": done,
        "longest_pause_ms_in_each_second": {name: p.as_json() for name, p in pauses.items()},
        "memory_mib_settled": first,
        "memory_mib_in_the_end": last,
        "memory_growth_share": growth,
        "memory_mib_every_tenth_swap": [size.native / MIB for size in memory],
        "memory_mib_with_the_java_heap_every_tenth_swap": [size.whole / MIB for size in memory],
    }


def _seconds(start_ms: float, seconds: float) -> list[tuple[float, float]]:
    """Windows of about a second, in ms, that begin at a moment and fill so many seconds."""
    count = max(1, int(seconds))
    return [(start_ms + n * 1000 * seconds / count, start_ms + (n + 1) * 1000 * seconds / count) for n in range(count)]


def _memory(job: Job) -> Resident:
    """Of the TaskManagers themselves: the first run of a release, in a process of its own, is gone with it."""
    plan = job.stack.plan
    pids = [job.stack.server(name).process.pid for name in plan.wanted if name.startswith("taskmanager")]
    parts = [resident(pid) for pid in pids if pid is not None]
    return Resident(sum(part.whole for part in parts), sum(part.native for part in parts))


def _failures(job: Job) -> int:
    rest = job.stack.rest
    return len(rest.get(f"/jobs/{rest.jobs()[-1].id}/exceptions")["exceptionHistory"]["entries"])
