"""Every fault test is told of in a table; `make faults` keeps it as JSON for the README."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from deploy.local.stack import Stack
from tests.bench.report import RESULTS, Run, show
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import FIRST
from tests.trial import OUTCOMES, STRICT, as_rows


@pytest.fixture(scope="session", autouse=True)
def table() -> Iterator[None]:
    """Prints the outcomes at the end, and keeps them where that was asked for."""
    run = Run("faults", quick=False)
    yield
    if not OUTCOMES:
        return
    show(
        "faults",
        ["fault", "current again after s", "events read again", "verdict"],
        [(o.fault, _shown(o.recovery_s), _shown(o.replayed), o.verdict) for o in OUTCOMES],
    )
    if STRICT:  # the figures of a part of the tests replace their own ones only
        file = RESULTS / "faults.json"
        known = json.loads(file.read_text())["faults"] if file.exists() else []
        today = datetime.now(UTC).date().isoformat()
        rows = {row["fault"]: row for row in (*known, *({**row, "date": today} for row in as_rows(OUTCOMES)))}
        run.write({"faults": list(rows.values())})


def _shown(figure: float | None) -> float | str:
    return "" if figure is None else figure


@pytest.fixture(scope="session")
def jobs(stack: Stack) -> Iterator[list[RunningJob]]:
    """Every job that modules took over from each other, the newest last."""
    jobs: list[RunningJob] = []
    yield jobs
    for job in jobs:
        job.leave()


@pytest.fixture(scope="module")
def job(stack: Stack, jobs: list[RunningJob], tmp_path_factory: pytest.TempPathFactory) -> RunningJob:
    """A job that serves FIRST, with a supervisor that brings back what dies; modules take it over from each other."""
    planned = stack.plan.job
    if jobs and planned is not None and planned.env["FRESHREC_NAMESPACE"] == jobs[-1].namespace:
        return jobs[-1]
    stack.supervisor.stop()
    stack.stop_flink()
    job = RunningJob(stack, f"faults{len(jobs) + 1}")
    jobs.append(job)
    job.start()
    job.serve(make_release(tmp_path_factory.mktemp("releases") / "first", *FIRST))
    return job
