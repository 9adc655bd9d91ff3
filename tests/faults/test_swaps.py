"""Many models one after the other under load: no batch fails, no row is of two, memory and pauses stay bounded.

Some dozen swaps; `python -m tests.bench swap` makes five hundred. Run with -s for the figures.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
import pytest

from schemas.release import ModelRelease
from schemas.user_state import HISTORY
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import visitors

ITEM_IDS = [f"item-{number}" for number in range(5000)]
# Three, so that each swap loads its model anew: the job keeps the one before.
ORDERS = {
    "20260101-000000": ITEM_IDS,
    "20260102-000000": ITEM_IDS[::-1],
    "20260103-000000": [*ITEM_IDS[2000:], *ITEM_IDS[:2000]],
}
PLACES = {version: {item: place for place, item in enumerate(order)} for version, order in ORDERS.items()}
# The first ones pass while the JVM still touches its heap for the first time: resident memory grows without any swap.
SETTLED, SWAPS = 45, 85
PER_SECOND, USERS = 150, 60
# Of resident memory, once it has settled.
MOST_GROWTH = 0.05
# The longest time between two acknowledged batches around a swap; half of all, as this machine pauses by itself, too.
MOST_PAUSE_MS = 250


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


def memory(job: RunningJob) -> int:
    """Resident bytes of the TaskManagers."""
    names = [name for name in job.stack.plan.wanted if name.startswith("taskmanager")]
    return sum(psutil.Process(job.stack.server(name).process.pid).memory_info().rss for name in names)


@pytest.fixture
def releases(tmp_path: Path) -> list[ModelRelease]:
    return [make_release(tmp_path / version, ITEM_IDS, order, version) for version, order in ORDERS.items()]


def test_many_swaps_fail_no_batch_mix_no_row_and_take_no_memory(
    start_job: Callable[..., RunningJob], releases: list[ModelRelease]
) -> None:
    job = start_job()
    resident: list[int] = []
    pauses: list[int] = []
    with visitors(job, PER_SECOND, lambda n: (f"visitor-{n % USERS}", ITEM_IDS[1000 + n % 40])) as clicked:
        for number in range(SWAPS):
            release = releases[number % len(releases)]
            began = time.time()
            job.publish(release)
            job.eventually(f"swap {number}", lambda at=began, want=release.version: want in versions(job, at))  # type: ignore[misc]
            resident.append(memory(job))
            if number > len(releases):
                pauses.append(job.metric("write_longest_pause_ms"))
        sent = clicked()
        job.eventually("all clicks are read", lambda: job.metric("features_records") >= sent)
    first, last = median(resident[SETTLED : SETTLED + 6]), median(resident[-6:])
    print("\nMiB after every fifth swap:", *(f"{size / 2**20:.0f}" for size in resident[::5]))
    print(f"{SWAPS} swaps, {sent} clicks; MiB {first / 2**20:.0f} → {last / 2**20:.0f} ({last / first - 1:+.1%}); "
          f"longest pause in ms: half below {median(pauses):.0f}, all below {max(pauses)}")  # fmt: skip
    assert job.metric("score_swaps") == SWAPS
    assert job.metric("score_refused") == job.metric("score_rolled_back") == 0
    rest = job.stack.rest
    assert rest.get(f"/jobs/{rest.jobs()[-1].id}/exceptions")["exceptionHistory"]["entries"] == []
    assert last < first * (1 + MOST_GROWTH)
    assert median(pauses) <= MOST_PAUSE_MS
