"""(a) From a full topic to acknowledged rows: events and rows a second, the job beside its peers.

Sessions in turn: job, tuned consumer, job, tuned consumer, …; each with empty topics and no state. In a session some
rounds: the system stands still while the topic is filled; the clock runs from the moment it goes on until every user's
row knows the user's newest event, as a reader of Cassandra sees it. Rows are counted by Cassandra. The first round of a
session is `cold`: the process has seen a few events; the others are `warm`. The tutorial's job gets fewer events.
Ratios are of neighbours in time, turn by turn: what else runs on the machine changes slower. A system that gets more of
the cores than another is faster on a full machine: events by CPU second of a system's own processes stand beside.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer

from tests.bench.figures import Spread, ratio, spread
from tests.bench.lab import Lab
from tests.bench.report import Run, show
from tests.bench.systems import MIB, Job, System, TunedConsumer, Tutorial, session
from tests.bench.world import Events, Shop

# Four a user, as after some minutes' pause: who is behind may make one row of a user's events.
EVENTS, EVENTS_QUICK = 200_000, 60_000
TUTORIAL_EVENTS, TUTORIAL_EVENTS_QUICK = 2_000, 600
ROUNDS, ROUNDS_QUICK = 3, 2
SESSIONS, SESSIONS_QUICK = 3, 1
# A rate of a tenth of what any system here should reach still ends.
PATIENCE_S = 120.0
HEATS = ("cold", "warm")


@dataclass
class Rates:
    """Of every round of one system, by whether its process was warm: per second, and cores used meanwhile."""

    events: dict[str, list[float]] = field(default_factory=lambda: {"cold": [], "warm": []})
    rows: dict[str, list[float]] = field(default_factory=lambda: {"cold": [], "warm": []})
    cores: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    events_per_cpu_s: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            f"{name}_per_second_{heat}": spread(values)
            for name, by_heat in (("events", self.events), ("rows", self.rows))
            for heat, values in by_heat.items()
            if values
        }
        return {
            **found,
            "events_per_cpu_second": spread(self.events_per_cpu_s),
            "cores": spread(self.cores),
            "memory_mib": spread(self.memory_mib),
            "events_per_second_of_each_round": self.events,
            "rows_per_second_of_each_round": self.rows,
        }


def fill(producer: Producer, topic: str, events: Events) -> None:
    """Produce all of them as fast as they go; acknowledged by Kafka when this returns."""
    for key, value in zip(events.keys, events.values, strict=True):
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.01)
    if producer.flush(60):
        raise TimeoutError(f"Kafka did not take {len(events)} events within 60 s")


def play(run: Run, system: System, rates: Rates, counts: list[int]) -> None:
    """One session: as many rounds as counts, each of so many events."""
    shop = Shop(11)
    with session(system):
        for number, count in enumerate(counts):
            events = shop.events(count)
            with system.frozen():
                fill(system.producer, system.clicks, events)
                rows, used = system.reader.rows_written(), system.usage()
                began = time.time()
            seconds = system.reader.wait_all(events.newest(), PATIENCE_S) - began
            rows, now = system.reader.rows_written() - rows, system.usage()
            heat = "cold" if number == 0 else "warm"
            rates.events[heat].append(count / seconds)
            rates.rows[heat].append(rows / seconds)
            cpu_s = now.cpu_s - used.cpu_s
            rates.cores.append(cpu_s / seconds)
            rates.events_per_cpu_s.append(count / cpu_s)
            rates.memory_mib.append(now.memory / MIB)
            run.say(f"{system.name}, {heat}: {count / seconds:,.0f} events/s, {rows / seconds:,.0f} rows/s")


def measure(quick: bool) -> None:
    """Run, print and write down everything."""
    run = Run("backlog", quick)
    count = EVENTS_QUICK if quick else EVENTS
    few = TUTORIAL_EVENTS_QUICK if quick else TUTORIAL_EVENTS
    rounds = ROUNDS_QUICK if quick else ROUNDS
    found: dict[str, list[Rates]] = {name: [] for name in (Job.name, TunedConsumer.name, Tutorial.name)}
    with Lab(run) as lab:
        for turn in range(SESSIONS_QUICK if quick else SESSIONS):
            for kind, counts in ((Job, [count] * rounds), (TunedConsumer, [count] * rounds), (Tutorial, [few] * 2)):
                found[kind.name].append(Rates())
                play(run, kind(lab.stack, lab.namespace(), lab.release), found[kind.name][-1], counts)
            run.say(f"turn {turn + 1} is over")
    report(run, found, {"events_a_round": count, "events_a_round_of_the_tutorial": few})


def report(run: Run, found: dict[str, list[Rates]], settings: dict[str, int]) -> None:
    """Tables and JSON."""
    together = {name: joined(turns) for name, turns in found.items()}
    rows = []
    for name, rates in together.items():
        cells: list[Spread | str] = []
        for by_heat in (rates.events, rates.rows):
            cells += [spread(by_heat[heat]) if by_heat[heat] else "" for heat in HEATS]
        rows.append((name, *cells, spread(rates.events_per_cpu_s), spread(rates.cores), spread(rates.memory_mib)))
    columns = ["per second", "events, cold", "events, warm", "rows, cold", "rows, warm", "events/CPU s", "cores", "MiB"]
    show("backlog to acknowledged rows, median (least–most)", columns, rows)
    beside = {
        f"{what} ÷ {peer}, {heat}": spread(
            [
                ratio(getattr(own, what)[heat], getattr(other, what)[heat]).median
                for own, other in zip(found[Job.name], found[peer], strict=True)
            ]
        )
        for peer in (TunedConsumer.name, Tutorial.name)
        for what in ("events", "rows")
        for heat in HEATS
        if getattr(together[peer], what)[heat]
    }
    show("the job beside, by turn: what ran next to it", ["", "ratio"], list(beside.items()))
    systems = {name: rates.as_json() for name, rates in together.items()}
    run.write({"settings": settings, "systems": systems, "job_beside": beside})


def joined(turns: list[Rates]) -> Rates:
    """All turns of one system as if they were one."""
    whole = Rates()
    for turn in turns:
        for heat in HEATS:
            whole.events[heat] += turn.events[heat]
            whole.rows[heat] += turn.rows[heat]
        whole.cores += turn.cores
        whole.memory_mib += turn.memory_mib
        whole.events_per_cpu_s += turn.events_per_cpu_s
    return whole
