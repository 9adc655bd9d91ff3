"""(b) From produced to acknowledged: p50, p95, p99 and max at steady rates, of every event, beside the peers.

Produced is Kafka's time of creation, given by the producer. Acknowledged is when Cassandra's answer reached the writer,
noted for every event (acks.py). Beside it a reader, who knows nothing of the writers: a few times a second it sends an
event of its own for some user and reads that user's row, every five milliseconds, until the row knows the event. Where
both disagree by more than the reader's own milliseconds, one of them is wrong.
Arrivals are smooth (feed.py). Sessions of the systems take turns; a session first works off a small backlog and then
some time of steady events, so that no JVM is measured while its compilers take a quarter of both cores, and the first
seconds of each rate do not count.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.click import Click, encode_click
from tests.bench.acks import read_acks
from tests.bench.backlog import fill
from tests.bench.feed import Feeder
from tests.bench.figures import Percentiles, held, percentiles, spread
from tests.bench.lab import Lab
from tests.bench.report import Run, show
from tests.bench.systems import MIB, Job, System, TunedConsumer, Tutorial, session
from tests.bench.world import USERS, Shop, item_id, user_id

RATES, RATES_QUICK = (100, 1_000, 5_000), (100, 1_000)
# Two checkpoints long (checkpoint_s): events wait for each.
SECONDS, SECONDS_QUICK = 60.0, 12.0
SESSIONS, SESSIONS_QUICK = 2, 1
# What the tutorial's job can hold; at more its queue grows for as long as one looks.
TUTORIAL_RATES = (50,)
# Not counted at the beginning of each rate: connections, buffers and batch sizes find their level.
SETTLE_S = 5.0
WARM_UP_EVENTS = 30_000
# A minute and a half until the JVM's compilers are done.
WARM_UP_S, WARM_UP_S_QUICK, WARM_UP_RATE = 90.0, 20.0, 1_000.0
# After the last event: a system that holds the rate needs milliseconds.
DRAIN_S = 20.0
PROBES_PER_S = 4.0
# How often each probe's row is read. Every millisecond would take a fifth of a core for as long as rows are late, and
# make them later.
PROBE_POLL_S = 0.005


@dataclass
class Ages:
    """Of one system at one rate, over its sessions."""

    acknowledged: list[NDArray[np.float64]] = field(default_factory=list)
    seen: list[float] = field(default_factory=list)
    missing: int = 0
    feed_late_ms: float = 0.0
    cores: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)

    def of_all(self) -> Percentiles:
        """Of every event."""
        return percentiles(np.concatenate(self.acknowledged))

    def held(self) -> bool:
        """Whether the system kept up in every session."""
        return not self.missing and all(held(ages) for ages in self.acknowledged)

    def of_each_session(self) -> list[Percentiles]:
        return [percentiles(ages) for ages in self.acknowledged]

    def as_json(self) -> dict[str, Any]:
        sessions = self.of_each_session()
        return {
            "acknowledged_ms": self.of_all().as_json(),
            "acknowledged_ms_of_each_session": [one.as_json() for one in sessions],
            "seen_by_a_reader_ms": percentiles(np.array(self.seen)).as_json(),
            "held": self.held(),
            "events_not_acknowledged": self.missing,
            "latest_event_of_the_feed_ms": self.feed_late_ms,
            "cores": spread(self.cores),
            "memory_mib": spread(self.memory_mib),
        }


def play(run: Run, system: System, rates: tuple[int, ...], seconds: float, found: dict[int, Ages]) -> None:
    """One session: each rate for so many seconds."""
    with session(system):
        if not isinstance(system, Tutorial):
            backlog = Shop(21).events(WARM_UP_EVENTS)
            fill(system.producer, system.clicks, backlog)
            system.reader.wait_all(backlog.newest(), 60)
            warm_up(system, WARM_UP_S_QUICK if run.quick else WARM_UP_S)
        for rate in rates:
            one_rate(system, rate, seconds, found.setdefault(rate, Ages()))
            now, seen = percentiles(found[rate].acknowledged[-1]), percentiles(np.array(found[rate].seen))
            run.say(
                f"{system.name}, {rate:,}/s: p50 {now.p50:.0f}, p99 {now.p99:.0f}, max {now.max:.0f} ms; "
                f"a reader sees p50 {seen.p50:.0f} ms"
            )


def warm_up(system: System, seconds: float) -> None:
    """Steady events that do not count."""
    feeder = Feeder(system.clicks, system.env, WARM_UP_RATE, seconds, seed=1)
    try:
        feeder.begin()
        feeder.finish()
    finally:
        feeder.close()


def one_rate(system: System, rate: int, seconds: float, ages: Ages) -> None:
    """Feed, probe, and gather what was acknowledged."""
    feeder = Feeder(system.clicks, system.env, rate, SETTLE_S + seconds, seed=rate)
    try:
        feeder.begin()
        time.sleep(SETTLE_S)
        used, began = system.usage(), time.time()
        seen = probe(system, began + seconds)
        now, elapsed = system.usage(), time.time() - began
        fed = feeder.finish()
    finally:
        feeder.close()
    until = fed.from_ms + 1000 * (SETTLE_S + seconds)
    sent = fed.events + len(seen)
    deadline = time.monotonic() + DRAIN_S
    while True:
        produced, acknowledged = read_acks(system.acks)
        of_rate = produced >= fed.from_ms - 1
        if of_rate.sum() >= sent or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    counts = of_rate & (produced >= fed.from_ms + 1000 * SETTLE_S) & (produced < until)
    ages.acknowledged.append((acknowledged - produced)[counts])
    ages.seen += seen
    ages.missing += max(0, sent - int(of_rate.sum()))
    ages.feed_late_ms = max(ages.feed_late_ms, fed.latest_ms)
    ages.cores.append((now.cpu_s - used.cpu_s) / elapsed)
    ages.memory_mib.append(now.memory / MIB)


def probe(system: System, until: float) -> list[float]:
    """Ages in ms as a reader sees them, of events sent at moments of their own until a moment, s since 1970.

    A probe does not wait for the one before: else slow moments would be looked at less often than quick ones.
    """
    choose = random.Random(5)
    ages: list[float] = []
    waiting: list[tuple[str, int]] = []
    following = time.time()
    while waiting or time.time() < until:
        if following <= time.time() < until:
            waiting.append(_send_probe(system, user_id(choose.randrange(USERS))))
            following += choose.uniform(0.5, 1.5) / PROBES_PER_S
        for one in list(waiting):
            user, sent = one
            current = system.reader.event_time(user) >= sent
            age = time.time() * 1000 - sent
            if current or age > 1000 * DRAIN_S:  # then its age is at least that
                ages.append(age)
                waiting.remove(one)
        time.sleep(PROBE_POLL_S)
    return ages


def _send_probe(system: System, user: str) -> tuple[str, int]:
    now = int(time.time() * 1000)
    click = Click(f"probe-{user}-{now}", user, item_id(now % 1000), now)
    system.producer.produce(system.clicks, encode_click(click), user.encode(), timestamp=now)
    system.producer.poll(0)
    return user, now


def measure(quick: bool) -> None:
    """Run, print and write down everything."""
    run = Run("freshness", quick)
    rates, seconds = (RATES_QUICK, SECONDS_QUICK) if quick else (RATES, SECONDS)
    found: dict[str, dict[int, Ages]] = {name: {} for name in (Job.name, TunedConsumer.name, Tutorial.name)}
    with Lab(run) as lab:
        for _ in range(SESSIONS_QUICK if quick else SESSIONS):
            for kind in (Job, TunedConsumer):
                play(run, kind(lab.stack, lab.namespace(), lab.release), rates, seconds, found[kind.name])
        if not quick:  # its backlog is among the quick ones
            tutorial = Tutorial(lab.stack, lab.namespace(), lab.release)
            play(run, tutorial, TUTORIAL_RATES, seconds, found[Tutorial.name])
    rows = []
    for name, by_rate in found.items():
        for rate, ages in by_rate.items():
            all_of_them, seen = ages.of_all(), percentiles(np.array(ages.seen))
            cells = [all_of_them.p50, all_of_them.p95, all_of_them.p99, all_of_them.max, seen.p50, seen.p95]
            kept_up = "yes" if ages.held() else "no"
            rows.append((f"{name}, {rate:,}/s", *cells, kept_up, spread(ages.cores), spread(ages.memory_mib)))
    columns = [
        "ms from produced to",
        "acknowledged: p50",
        "p95",
        "p99",
        "max",
        "seen: p50",
        "p95",
        "held",
        "cores",
        "MiB",
    ]
    show("freshness of every event", columns, rows)
    run.write(
        {
            "settings": {"seconds_a_rate": seconds, "sessions": SESSIONS_QUICK if quick else SESSIONS},
            "systems": {name: {str(rate): ages.as_json() for rate, ages in by.items()} for name, by in found.items()},
        }
    )
