"""(f) What grows with users and with items: RocksDB, checkpoints and µs per event; the scorer's µs per user.

    python -m tests.bench.growth --users 1000000         # one more step; minutes, and 2 KB of disk a user and copy

Users: each step fills the state up to so many users, one event each, through the running job; then events of users
drawn evenly from all of them are timed by the operators' own counters. Items: the lean graph alone with so many items,
one thread, batches of BATCH users.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer
from numpy.typing import NDArray

from schemas.errors import run_command
from schemas.features import COUNTER_NAMES
from schemas.recommendation import LIST_LENGTH
from schemas.user_state import HISTORY
from tests.bench.acks import count_acks, wait_acks
from tests.bench.backlog import fill
from tests.bench.figures import Spread, spread
from tests.bench.lab import Lab
from tests.bench.report import Run, show
from tests.bench.systems import MIB, Job, System, present_counts, session
from tests.bench.world import WIDTH, Shop, two_hours_ago_ms
from trainer.lean import lay
from trainer.network import Network
from trainer.recipe import NetworkConfig

USERS, USERS_QUICK = (10_000, 100_000), (2_000, 10_000)
ITEMS, ITEMS_QUICK = (10_000, 100_000, 1_000_000), (10_000, 100_000)
# Filled in parts, so that no more than these are encoded in memory at once.
PART = 20_000
TIMED_EVENTS, TIMED_EVENTS_QUICK = 20_000, 5_000
PATIENCE_S = 300.0
# At least one checkpoint begins and ends, and metrics are fetched.
SETTLE_S = 5.0
BATCH, CALLS = 32, 7
COUNTERS = ("features_decode_us", "features_state_us", "features_update_us", "score_us", "write_us")


def grow_users(run: Run, job: System, steps: tuple[int, ...], timed: int) -> Iterator[dict[str, dict[str, float]]]:
    """Figures by number of users, after each step. Users come in no order: one who is new could be in any file."""
    found: dict[str, dict[str, float]] = {}
    everybody, known = np.random.default_rng(9).permutation(steps[-1]), 0
    # An event a millisecond, and none of them may be of the future.
    shop = Shop(51, from_ms=two_hours_ago_ms() - steps[-1] - timed * len(steps))
    for users in steps:
        began = time.time()
        _fill(job, shop, everybody[known:users])
        filled_s, known = time.time() - began, users
        time.sleep(job.stack.plan.checkpoint_s + SETTLE_S)
        figures = _figures(job, shop, everybody[:users], timed)
        figures["filled_in_s"] = filled_s
        found[str(users)] = figures
        run.say(f"{users:,} users: {figures['rocksdb_mib']:.0f} MiB, checkpoint {figures['checkpoint_ms']:.0f} ms")
        yield found


def show_users(by_users: dict[str, dict[str, float]]) -> None:
    """The table."""
    names = list(next(iter(by_users.values())))
    show("users in state", ["", *by_users], [(name, *(by_users[users][name] for users in by_users)) for name in names])


def _fill(job: System, shop: Shop, users: NDArray[np.int64]) -> None:
    """One event of each of these users; their rows are there when this returns."""
    before = count_acks(job.acks)
    for first in range(0, len(users), PART):
        part = shop.of_users(users[first : first + PART])
        fill(job.producer, job.clicks, part)
        # The next part is encoded while the job works on this one.
        if not wait_acks(job.acks, before + first, PATIENCE_S):
            raise TimeoutError(f"of {first} events not all are rows {PATIENCE_S:.0f} s after the last was produced")
    job.reader.wait_last(part.newest(), PATIENCE_S)


def _figures(job: System, shop: Shop, users: NDArray[np.int64], timed: int) -> dict[str, float]:
    rest = job.stack.rest
    before = present_counts(job, COUNTERS)
    events = shop.of_users(np.random.default_rng(3).choice(users, timed))
    fill(job.producer, job.clicks, events)
    job.reader.wait_last(events.newest(), PATIENCE_S)
    after = present_counts(job, COUNTERS)
    spent = {name: after[name] - before[name] for name in COUNTERS}
    checkpoint = rest.checkpoint(rest.jobs()[-1].id)
    return {
        "rocksdb_mib": _size(job.stack.state / "flink" / "tmp", "*.sst") / MIB,
        "checkpoint_mib": checkpoint.size / MIB if checkpoint else 0.0,
        "checkpoint_ms": float(checkpoint.duration_ms) if checkpoint else 0.0,
        "memory_mib": job.usage().memory / MIB,
        **{f"{name}_per_event": value / timed for name, value in spent.items()},
    }


def _size(folder: Path, pattern: str) -> int:
    total = 0
    for file in folder.rglob(pattern):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue  # compacted away meanwhile
    return total


def grow_items(run: Run, steps: tuple[int, ...]) -> dict[str, Spread]:
    """µs per user by number of items."""
    found = {}
    for items in steps:
        graph, _ = lay(Network(NetworkConfig(items, width=WIDTH)).eval(), LIST_LENGTH)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session_ = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = _feed(items)
        feed = {value.name: feed[value.name] for value in session_.get_inputs()}
        times = []
        for _ in range(CALLS):
            began = time.perf_counter()
            session_.run(None, feed)
            times.append((time.perf_counter() - began) / BATCH * 1e6)
        found[str(items)] = spread(times[1:])
        run.say(f"{items:,} items: {found[str(items)].median:,.0f} µs per user")
    return found


def _feed(items: int) -> dict[str, Any]:
    choose = np.random.default_rng(4)
    shape = (BATCH, HISTORY)
    return {
        "item_index": choose.integers(1, items + 1, shape),
        "action": choose.integers(1, 9, shape),
        "gap": choose.integers(1, 20, shape),
        "age": choose.integers(1, 20, shape),
        "counters": choose.random((BATCH, len(COUNTER_NAMES)), np.float32),
        "available": np.ones(items + 1, np.bool_),
    }


def measure(quick: bool, more_users: int = 0) -> None:
    """Run, print and write down everything."""
    run = Run("growth", quick)
    steps = USERS_QUICK if quick else (*USERS, *([more_users] if more_users else []))
    by_items = grow_items(run, ITEMS_QUICK if quick else ITEMS)
    with Lab(run) as lab, session(Job(lab.stack, lab.namespace(), lab.release)) as job:
        *_, by_users = grow_users(run, job, steps, TIMED_EVENTS_QUICK if quick else TIMED_EVENTS)
    show_users(by_users)
    show("items: µs per user, the graph alone, one thread", ["", *by_items], [("µs", *by_items.values())])
    run.write({"cores": len(os.sched_getaffinity(0)), "users": by_users, "items_us_per_user": by_items})


app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def main(users: Annotated[int, typer.Option(help="One more step of so many users.")] = 0) -> None:
    """Grow."""
    measure(quick=False, more_users=users)


if __name__ == "__main__":
    run_command(app)
