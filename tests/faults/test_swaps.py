"""Many models one after the other under load: no batch fails, no row is of two, memory stays bounded.

Some dozen swaps; `python -m tests.bench swap` makes five hundred and looks at pauses, too. Run with -s for the figures.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from schemas.release import ModelRelease
from schemas.user_state import HISTORY
from tests.harness import RunningJob
from tests.releases import make_release
from tests.resident import Resident, resident
from tests.traffic import visitors

ITEM_IDS = [f"item-{number}" for number in range(5000)]
# Three, so that each swap loads its model anew: the job keeps the one before.
ORDERS = {
    "20260101-000000": ITEM_IDS,
    "20260102-000000": ITEM_IDS[::-1],
    "20260103-000000": [*ITEM_IDS[2000:], *ITEM_IDS[:2000]],
}
PLACES = {version: {item: place for place, item in enumerate(order)} for version, order in ORDERS.items()}
# The first ones pass while the first models warm up and the JVM compiles.
SETTLED, SWAPS = 15, 60
PER_SECOND, USERS = 150, 60
MIB = 2**20
# Of resident memory beside the Java heap, once it has settled.
MOST_GROWTH = 0.05
# What deploy/local/flink/config.yaml sets aside for a TaskManager, everything in it.
WHOLE_MIB = 1800


def versions(job: RunningJob, since: float) -> set[str]:
    """The models of the rows written after a moment, each being wholly of its model."""
    rows = job.session.execute(
        f"SELECT item_ids, model_version, WRITETIME(item_ids) AS written FROM {job.settings.keyspace}.recommendations"
    )
    found = set()
    for row in rows:
        if row.model_version and row.written > since * 1e6:
            places = [PLACES[row.model_version][item] for item in row.item_ids]
            assert places == sorted(places) and places[-1] < len(places) + HISTORY, "a row of two models"
            found.add(row.model_version)
    return found


def memory(job: RunningJob) -> Resident:
    """Of the one TaskManager."""
    pid = job.stack.server("taskmanager-1").process.pid
    assert pid is not None
    return resident(pid)


@pytest.fixture
def releases(tmp_path: Path) -> list[ModelRelease]:
    return [make_release(tmp_path / version, ITEM_IDS, order, version) for version, order in ORDERS.items()]


def test_many_swaps_fail_no_batch_mix_no_row_and_take_no_memory(
    start_job: Callable[..., RunningJob], releases: list[ModelRelease]
) -> None:
    job = start_job()
    held: list[Resident] = []
    pauses: list[int] = []
    with visitors(job, PER_SECOND, lambda n: (f"visitor-{n % USERS}", ITEM_IDS[1000 + n % 40])) as clicked:
        for number in range(SWAPS):
            release = releases[number % len(releases)]
            began = time.time()
            job.publish(release)
            job.eventually(f"swap {number}", lambda at=began, want=release.version: want in versions(job, at))  # type: ignore[misc]
            held.append(memory(job))
            if number > len(releases):
                pauses.append(job.metric("write_longest_pause_ms"))
        sent = clicked()
        job.eventually("all clicks are read", lambda: job.metric("features_records") >= sent)
    native = [size.native / MIB for size in held]
    first, last, whole = median(native[SETTLED : SETTLED + 6]), median(native[-6:]), held[-1].whole / MIB
    print("\nMiB beside the Java heap after every fifth swap:", *(f"{size:.0f}" for size in native[::5]))
    print(f"{SWAPS} swaps, {sent} clicks; MiB {first:.0f} → {last:.0f} ({last / first - 1:+.1%}), in all {whole:.0f}; "
          f"longest pause in ms: half below {median(pauses):.0f}, all below {max(pauses)}")  # fmt: skip
    assert job.metric("score_swaps") == SWAPS
    assert job.metric("score_refused") == job.metric("score_rolled_back") == 0
    rest = job.stack.rest
    assert rest.get(f"/jobs/{rest.jobs()[-1].id}/exceptions")["exceptionHistory"]["entries"] == []
    assert last < first * (1 + MOST_GROWTH)
    assert whole < WHOLE_MIB
