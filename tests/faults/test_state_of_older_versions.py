"""State that an older version left behind is gone on from: nobody's past is lost, and nothing is read twice."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from schemas.click import Click
from schemas.item import Item
from tests.harness import RunningJob
from tests.older import AFTER, BEFORE, ERASED, GOLDEN, GONE, MOMENT_MS, tell, unpack
from tests.releases import make_release
from tests.traffic import FIRST, ITEM_IDS, told
from tests.trial import note

# How many hours of event time the trending list is of: the default of streaming.trending_hours.
HOURS = 7 * 24


@pytest.fixture(params=sorted(GOLDEN.glob("state-*.tgz")), ids=lambda golden: golden.stem)
def golden(request: pytest.FixtureRequest, stack: Stack) -> Iterator[tuple[RunningJob, Path]]:
    """A job under the savepoint's own namespace, and the savepoint."""
    stack.supervisor.stop()
    stack.stop_flink()
    job = RunningJob(stack, request.param.stem.removeprefix("state-"))
    yield job, request.param
    job.stop()


def test_state_of_an_older_version_goes_on(golden: tuple[RunningJob, Path], tmp_path: Path) -> None:
    job, savepoint = golden
    checkpoints = job.stack.state / "flink" / "checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)
    unpack(savepoint, checkpoints)
    # Kafka as it was then; nothing of it comes next. The release lies elsewhere by now, and is announced again.
    release = make_release(tmp_path / "release", *FIRST)
    tell(job, release)
    job.publish(release)
    began = time.monotonic()
    job.resume()
    assert "0 events since then are read" in job.stack.server("jobmanager").process.log_file.read_text()

    def serves() -> bool:
        # Shown, not wanted: it counts for no list of what is trending.
        job.click([Click(f"probe-{time.time_ns()}", "probe", ITEM_IDS[0], MOMENT_MS, "IMPRESSION")])
        row = job.row("probe")
        return row is not None and row.source == "model"

    job.eventually("the release serves", serves)
    row = job.row("probe")
    assert row is not None and GONE not in row.item_ids, "what was not available then is not now"
    job.catalogue([Item(GONE)])
    job.eventually("it is available again", lambda: serves() and GONE in (job.row("probe") or row).item_ids)

    oracle = told(BEFORE)
    oracle.erase(ERASED)
    for click in AFTER:
        oracle.click(click)
    # The same again changes nothing, but for the erased; each user's row tells of all events before and after.
    job.click([*(click for click in BEFORE[-20:] if click.user_id != ERASED), *AFTER])
    job.agree(oracle, FIRST)
    job.eventually("so does the trending list", lambda: (found := job.trending()) is not None and _same(found.item_ids))
    note(f"state of an older version ({savepoint.stem}), today's code", time.monotonic() - began)


def _same(item_ids: list[str]) -> bool:
    """Whether these lead what all wanted, of whatever user: what an erased user wanted stays counted."""
    return item_ids == told([*BEFORE, *AFTER]).trending(HOURS)[: len(item_ids)] and len(item_ids) > 0
