"""(f) One TaskManager, two, … up to the cores: events and rows a second from a full topic.

On one machine with Kafka and Cassandra on it: what more TaskManagers give where cores are to be had is measured on
larger machines.
"""

from __future__ import annotations

import os

from tests.bench.backlog import EVENTS, EVENTS_QUICK, ROUNDS, ROUNDS_QUICK, Rates, play
from tests.bench.figures import ratio, spread
from tests.bench.lab import Lab
from tests.bench.report import Run, show
from tests.bench.systems import Job

# The job's shards, whatever its width: see streaming.largest_parallelism.
MOST = 4


def measure(quick: bool) -> None:
    """Run, print and write down everything."""
    run = Run("scale", quick)
    count, rounds = (EVENTS_QUICK, ROUNDS_QUICK) if quick else (EVENTS, ROUNDS)
    widths = [width for width in (1, 2, 4) if width <= min(MOST, len(os.sched_getaffinity(0)))]
    found = {width: Rates() for width in widths}
    with Lab(run, taskmanagers=widths[-1]) as lab:
        for width in widths:
            job = Job(lab.stack, lab.namespace(), lab.release, width)
            job.env["FRESHREC_STREAMING__LARGEST_PARALLELISM"] = str(MOST)
            play(run, job, found[width], [count] * rounds)
    show(
        "backlog by TaskManagers, warm",
        ["TaskManagers", "events/s", "rows/s", "beside one"],
        [
            (
                str(width),
                spread(rates.events["warm"]),
                spread(rates.rows["warm"]),
                ratio(rates.events["warm"], found[1].events["warm"]),
            )
            for width, rates in found.items()
        ],
    )
    run.write({"events_a_round": count, "taskmanagers": {str(w): rates.as_json() for w, rates in found.items()}})
