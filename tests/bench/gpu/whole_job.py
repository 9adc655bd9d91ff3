"""The whole job on one GPU host: Kafka, Cassandra and many TaskManagers, all real, all on it.

    python -m tests.bench.gpu.whole_job prepare FOLDER --items N [--way fp16]
    python -m tests.bench.gpu.whole_job run FOLDER --items N [--taskmanagers 8] [--events 4000000] [--rates 50000,10000]

`prepare` writes a release of so many items (torch is needed there alone). `run` measures with it, one after the other
    backlog    events and rows a second from a full topic to acknowledged rows
    freshness  from produced to acknowledged while events come evenly, at each rate
and writes JSON after each. Beside them: cores by thread, µs by stage, how busy Flink's tasks and the GPU are. Nothing
counts unless every TaskManager says that it serves on the provider asked for. It ends with questions: was all read that
was produced, is nothing a dead letter, do rows know their users' newest events, are lists those that the CPU makes?
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from deploy.local import cassandra
from deploy.local.topics import create_topics
from schemas.click import decode_clicks
from schemas.features import model_inputs
from schemas.settings import CommonSettings
from schemas.user_state import apply_events, empty_states
from streaming.look import FAR_AHEAD_MS
from streaming.model import CUDA, load
from streaming.sturdy import CPU
from tests.bench import world
from tests.bench.acks import count_acks, read_acks, wait_acks
from tests.bench.backlog import fill
from tests.bench.feed import Sender
from tests.bench.figures import percentiles, spread
from tests.bench.gpu.host import ROOMIER, busy, cost, gpu, large_stack, serving_on
from tests.bench.gpu.source import USERS
from tests.bench.report import RESULTS, Run, show
from tests.bench.systems import Job, present_counts, session
from trainer.publish import verify
from trainer.shrink import Full, Narrow, write_shrunk

PARTITIONS = 8
# Processes that send: many fill a topic fastest; two are even, and ask Kafka less often.
FILLING, EVEN = min(16, len(os.sched_getaffinity(0))), 2
# Rounds that count, and how many of a round's events warm up before: a round is some checkpoints long.
ROUNDS, WARM_UP = 3, 0.75
# At a steady rate: two checkpoints long (checkpoint_s).
SETTLE_S, SECONDS = 6.0, 60.0
CHECKED_USERS, CHECKED_EVENTS, FIRST_CHECKED = 40, 8, 5_000_000
# What takes longer is given up; after so long no further round begins.
PATIENCE_S, LONGEST_S = 90.0, 150.0
# Flink tells what its metrics are late now and then, though rows show that the events were read.
METRICS_LATE_S = 20.0
STAGES = ("features_decode_us", "features_state_us", "features_update_us", "score_us", "write_us")
COUNTS = (
    *("features_records", "features_duplicates", "features_late", "features_dead_letters", "features_batches"),
    *("score_by_model", "write_rows", *STAGES),
)


def version_of(items: int, seed: int = 1) -> str:
    return f"202601{seed:02d}-{items // 1000:06d}"


def prepare(folder: Path, items: int, way: str, seed: int = 1) -> None:
    """A release of so many items, shrunk in that way."""

    def in_that_way(full: Full, narrow: Narrow, _: list[str], wide: Path, into: Path, threads: int) -> None:
        write_shrunk(full, narrow, [way], wide, into, threads)

    with patch("tests.bench.world.write_shrunk", in_that_way):
        print(world.make_release(folder, version_of(items, seed), items=items, seed=seed).folder, flush=True)


class Bench:
    """A session of the job, and all that was produced in it. newest: int64[USERS] ms, by user."""

    def __init__(self, run: Run, job: Job) -> None:
        self.run, self.job, self.items = run, job, job.release.manifest.item_count
        self.newest, self.produced, self._sources = np.zeros(USERS, np.int64), 0, 0
        # Later with each use, and never of the future. Processes that send side by side are not in step: a user of more
        # than 50 events in that time has late ones, which are counted and leave his history as it is.
        self._clock_ms = world.two_hours_ago_ms()

    @contextmanager
    def sources(self, count: int, rate: float = 0.0) -> Iterator[list[Sender]]:
        """So many events, ready to be sent by several processes; all must be sent in the end."""
        several = EVEN if rate else FILLING
        each, folder, made = count // several, self.job.stack.state, []
        for number in range(several):
            self._sources += 1
            order = (self.job.clicks, rate / several, each, self._sources, self.items, self._clock_ms)
            made.append(Sender("tests.bench.gpu.source", self.job.env, *order, folder / f"newest-{number}.npy"))
        self._clock_ms += each
        try:
            for source in made:
                source.wait_ready()
            yield made
            for number in range(several):
                self.newest = np.maximum(self.newest, np.load(folder / f"newest-{number}.npy"))
            self.produced += each * several
        finally:
            for source in made:
                source.close()

    def counts(self) -> Counter[str]:
        """The job's own counters, as they are now."""
        return present_counts(self.job, COUNTS)

    def acknowledged(self) -> int:
        """Events so far."""
        return count_acks(self.job.acks)

    def drained(self, upto: int, patience_s: float) -> None:
        """Wait until so many are acknowledged, or patience ends."""
        wait_acks(self.job.acks, upto, patience_s)

    def require_provider(self, provider: str, taskmanagers: int) -> None:
        """Send events until every TaskManager serves. Raises RuntimeError where one serves on something else."""
        deadline, found = time.monotonic() + PATIENCE_S, Counter[str]()
        shop = world.Shop(0, USERS, self.items)
        while found.total() < taskmanagers and time.monotonic() < deadline:
            events = shop.events(1000)
            fill(self.job.producer, self.job.clicks, events)
            self.produced += len(events)
            np.maximum.at(self.newest, events.user, events.event_time)
            time.sleep(1.0)
            found = serving_on(self.job.stack)
        self.run.say(f"{taskmanagers} TaskManagers, serving on {dict(found)}")
        if found != {provider: taskmanagers}:
            raise RuntimeError(f"TaskManagers serve on {dict(found)}, asked was {provider} in all {taskmanagers}")

    def round(self, count: int) -> dict[str, Any]:
        """Fill the topic while TaskManagers stand still; the clock runs from the moment they go on."""
        with self.sources(count) as sources:
            before, known = self.counts(), self.acknowledged()
            with self.job.frozen():
                for source in sources:
                    source.begin()
                filled = [source.finish() for source in sources]
                began = time.time()
            with cost(self.job) as used:
                self.drained(known + count // 2, PATIENCE_S)
                used["busy_ms_of_a_second"] = busy(self.job)
                self.drained(known + count // FILLING * FILLING, PATIENCE_S)
        after = self.counts()
        after.subtract(before)
        at = np.sort(read_acks(self.job.acks)[1][known:]) / 1000 - began
        seconds, fifth = float(at[-1]), len(at) // 5
        return {
            "events": count, "acknowledged": len(at), "seconds": seconds,
            "events_per_second": len(at) / seconds,
            "events_per_second_amid": 3 * fifth / float(at[4 * fifth] - at[fifth]),
            "rows_per_second": after["write_rows"] / seconds,
            "rows_of_the_model_per_second": after["score_by_model"] / seconds,
            "events_a_micro_batch": after["features_records"] / max(1, after["features_batches"]),
            "produced_per_second": count / (began - min(one.from_ms for one in filled) / 1000),
            "us_an_event": {name: after[name] / len(at) for name in STAGES}, **used,
        }  # fmt: skip

    def backlog(self, events: int) -> dict[str, Any]:
        """A round that does not count, then some that do."""
        until, found = time.monotonic() + LONGEST_S, [self.round(int(WARM_UP * events))]
        while len(found) <= ROUNDS and time.monotonic() < until:
            found.append(self.round(events))
            self.run.say(f"{found[-1]['events_per_second']:,.0f} events/s, {found[-1]['rows_per_second']:,.0f} rows/s")
        names = ("events_per_second", "events_per_second_amid", "rows_per_second")
        of_all = {name: spread([one[name] for one in found[1:]]) for name in names}
        return {**of_all, "warm_up": found[0], "rounds": found[1:]}

    def freshness(self, rate: int) -> dict[str, Any]:
        """Ages of all events while they come evenly, the first seconds left out."""
        before, known = self.counts(), self.acknowledged()
        with self.sources(int(rate * (SETTLE_S + SECONDS)), rate) as sources:
            for source in sources:
                source.begin()
            time.sleep(SETTLE_S)
            with cost(self.job) as used:
                time.sleep(SECONDS / 2)
                used["busy_ms_of_a_second"] = busy(self.job)
                fed = [source.finish() for source in sources]
        self.drained(known + sum(one.events for one in fed), PATIENCE_S / 3)
        after = self.counts()
        after.subtract(before)
        produced, acknowledged = (values[known:] for values in read_acks(self.job.acks))
        from_ms = max(one.from_ms for one in fed) + 1000 * SETTLE_S
        counted = (produced >= from_ms) & (produced < min(one.until_ms for one in fed))
        ages, second = (acknowledged - produced)[counted], (produced[counted] - int(from_ms)) // 1000
        figures = percentiles(ages)
        self.run.say(f"{rate:,} events/s: p50 {figures.p50:.0f}, p95 {figures.p95:.0f}, p99 {figures.p99:.0f} ms")
        return {
            **figures.as_json(), "events_not_acknowledged": sum(one.events for one in fed) - len(produced),
            "p99_of_each_second": [percentiles(ages[second == one]).p99 for one in np.unique(second)],
            "sent_per_second": sum(1000 * one.events / (one.until_ms - one.from_ms) for one in fed),
            "latest_event_of_the_feed_ms": max(one.latest_ms for one in fed), "rows": after["write_rows"],
            "events_a_micro_batch": after["features_records"] / max(1, after["features_batches"]),
            "us_an_event": {name: after[name] / max(1, after["features_records"]) for name in STAGES}, **used,
        }  # fmt: skip

    def checked(self) -> dict[str, Any]:
        """What was promised, looked at from outside of the job."""
        job, which = self.job, np.tile(np.arange(CHECKED_USERS), CHECKED_EVENTS)
        events = world.Shop(7, USERS, self.items).of_users(FIRST_CHECKED + which)
        fill(job.producer, job.clicks, events)
        job.reader.wait_last(events.newest(), PATIENCE_S)
        with patch("streaming.model.SLOWEST_S", PATIENCE_S):  # here nobody waits for it
            model = load(world.announcement(job.release), [CPU], threads=8)
        states = empty_states(CHECKED_USERS)
        apply_events(states, which, decode_clicks(events.values, events.keys, FAR_AHEAD_MS)[0])
        index, _ = model.run(model_inputs(states, model.vocabulary), np.ones(model.vocabulary.size + 1, np.bool_))
        same, right = [], 0
        with cassandra.cql(job.settings.cassandra) as found:
            ask = f"SELECT item_ids, model_version FROM {job.settings.keyspace}.recommendations WHERE user_id = %s"
            for user, row_of in zip(range(CHECKED_USERS), index.tolist(), strict=True):
                row = found.execute(ask, (world.user_id(FIRST_CHECKED + user),)).one()
                expected = {model.vocabulary.ids[place - 1] for place in row_of}
                same.append(len(expected & set(row.item_ids)) / len(expected))
                right += row.model_version == job.release.manifest.version
        sample = np.random.default_rng(1).choice(np.flatnonzero(self.newest), 300).tolist()
        job.reader.wait_last({world.user_id(user): int(self.newest[user]) for user in sample}, PATIENCE_S)
        now, produced = self.counts(), self.produced + len(events)
        deadline = time.monotonic() + METRICS_LATE_S
        while now["features_records"] < produced and time.monotonic() < deadline:
            now = self.counts()
        kept = now["features_records"] >= produced and now["features_dead_letters"] == 0 and right == CHECKED_USERS
        return {
            "held": kept, "produced": produced, "read": now["features_records"], "rows_of_the_model": right,
            "items_in_common_with_the_cpu": float(np.mean(same)), "users_checked": CHECKED_USERS,
            **{name: now[f"features_{name}"] for name in ("duplicates", "late", "dead_letters")},
        }  # fmt: skip


def measure(asked: argparse.Namespace) -> None:
    """All figures; what was found is written after each, whatever becomes of the next."""
    run = Run(f"whole-job-{asked.items}", quick=False)
    found: dict[str, Any] = {
        "gpu": gpu(),
        "items": asked.items,
        "taskmanagers": asked.taskmanagers,
        "roomier": ROOMIER,
    }
    write = partial(run.write, found, asked.out)
    release = verify(asked.folder / version_of(asked.items))
    with large_stack(run, asked.taskmanagers, asked.state) as stack:
        create_topics(CommonSettings(namespace="bench", kafka=stack.settings.kafka), PARTITIONS)  # Job would take fewer
        job = Job(stack, "bench", release, asked.taskmanagers)
        job.env["FRESHREC_STREAMING__PROVIDERS"] = json.dumps([asked.provider, CPU])
        with session(job):
            bench = Bench(run, job)
            bench.require_provider(asked.provider, asked.taskmanagers)
            found["provider_of_every_taskmanager"] = asked.provider
            found["backlog"] = bench.backlog(asked.events)
            write()
            for rate in filter(None, asked.rates.split(",")):
                found[f"freshness_at_{rate}"] = bench.freshness(int(rate))
                write()
            found["checked"] = bench.checked()
            write()
    rows: list[tuple[object, ...]] = [
        (f"{name}, {asked.items:,} items", one["events_per_second"], one["rows_per_second"], "", "", "")
        if name == "backlog"
        else (name, one["sent_per_second"], one["rows"] / (SETTLE_S + SECONDS), one["p50"], one["p95"], one["p99"])
        for name, one in found.items()
        if name.startswith(("backlog", "freshness"))
    ]
    show(f"the whole job on {found['gpu']}", ["", "events/s", "rows/s", "p50 ms", "p95", "p99"], rows)
    show("checked", ["", ""], list(found["checked"].items()))


def main() -> None:
    """One of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path, help="of the releases")
    parser.add_argument("--items", type=int, default=100_000, help="size of the catalogue")
    parser.add_argument("--seed", type=int, default=1, help="of what prepare makes")
    parser.add_argument("--way", default="fp16", help="how prepare shrinks the model (see trainer/ways.py)")
    parser.add_argument("--taskmanagers", type=int, default=8)
    parser.add_argument("--provider", default=CUDA, help="what every TaskManager must say that it serves on")
    parser.add_argument("--events", type=int, default=4_000_000, help="of a round")
    parser.add_argument("--rates", default="50000,10000", help="events a second, one after the other")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--state", type=Path, help="of the servers, with their logs; without it, gone in the end")
    asked = parser.parse_args()
    if asked.command == "prepare":
        prepare(asked.folder, asked.items, asked.way, asked.seed)
    else:
        measure(asked)


if __name__ == "__main__":
    main()
