"""Clocks that are an hour off: no row waits for the hour to pass, none goes back, no current event is refused."""

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from schemas.click import Click
from schemas.item import Item
from tests.faults.test_trainer_crash import ITEMS, Trainer, walks
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import FIRST, ITEM_IDS, make_clicks, told
from tests.trial import Trial, note
from trainer.collect import stored_clicks

HOUR_S, SHORT_S = 3600, 15
# Checkpoints are 2 s apart: after so long at rest nothing waits in the newest one.
AT_REST_S = 5.0
Clock = Callable[[int], dict[str, str]]


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    """What gives a process a clock that is so many seconds ahead."""
    if shutil.which("cc") is None:
        pytest.skip("only a C compiler makes a wrong clock")
    library = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)

    def ahead(seconds: int) -> dict[str, str]:
        env = {"LD_PRELOAD": str(library), "CLOCK_OFFSET_S": str(seconds)}
        told = subprocess.run(["date", "+%s"], env=env, capture_output=True, check=True).stdout
        assert abs(int(told) - time.time() - seconds) < 5, "the clock is not wrong"
        return env

    return ahead


@pytest.fixture(scope="module")
def job(start_job: Callable[..., RunningJob], tmp_path_factory: pytest.TempPathFactory) -> RunningJob:
    """A job of its own: what a clock ahead has written stays."""
    job = start_job()
    job.serve(make_release(tmp_path_factory.mktemp("releases") / "first", *FIRST))
    return job


@pytest.mark.long
def test_a_job_whose_clock_is_an_hour_behind_refuses_no_current_event(job: RunningJob, clock: Clock) -> None:
    """At rest when it changes: what waits in a window when a clock is put back waits for as long as it was put back."""
    before = len(job.dead_letters())
    time.sleep(AT_REST_S)
    job.halt()
    job.resume(**clock(-HOUR_S))
    assert "s ahead of this one made it" in job.stack.server("jobmanager").process.log_file.read_text()
    with Trial(job, "the job's clock an hour behind"):
        # The trial's own clicks are hours old.
        now = int(time.time() * 1000)
        job.click(current := [Click(f"now-{n}", f"now-{n % 5}", ITEM_IDS[n], now + n) for n in range(20)])
        time.sleep(8)
    job.agree(told(current), FIRST)
    with Trial(job, "the job's clock right again after an hour behind"):
        job.halt()
        job.resume()
    assert len(job.dead_letters()) == before, "an event of now is refused"
    job.eventually("the trending row goes on", lambda: trends(job), patience_s=30)


@pytest.mark.long
def test_a_job_whose_clock_is_put_back_by_less_than_a_start_takes_loses_nothing(job: RunningJob, clock: Clock) -> None:
    for env, fault in (
        (clock(SHORT_S), f"the job's clock {SHORT_S} s ahead"),
        ({}, f"the job's clock right again after {SHORT_S} s ahead"),
    ):
        with Trial(job, fault):
            job.halt()
            job.resume(**env)


@pytest.mark.long
def test_what_a_clock_an_hour_ahead_has_written_blocks_nothing_later(job: RunningJob, clock: Clock) -> None:
    with Trial(job, "the job's clock an hour ahead"):
        job.halt()
        job.resume(**clock(HOUR_S))
    job.eventually("the trending row goes on", lambda: trends(job), patience_s=30)
    job.halt()
    clicks = make_clicks("later", 300, users=20)
    began = time.monotonic()
    job.resume()
    job.click(clicks)
    job.agree(told(clicks), FIRST)
    job.eventually("the trending row goes on", lambda: trends(job), patience_s=30)
    note("the job's clock right again after an hour ahead: later events", time.monotonic() - began)


@pytest.mark.long
def test_a_trainer_whose_clock_is_put_back_leaves_no_event_out_and_names_releases_in_their_order(
    stack: Stack, clock: Clock, tmp_path: Path
) -> None:
    servers = RunningJob(stack, "trainer_clock")
    trainer = Trainer(servers, tmp_path)
    machine = dict(trainer.environment)
    servers.catalogue([Item(item) for item in ITEMS])
    produced: list[str] = []
    for seed, seconds, users, hours in (("ahead", HOUR_S, 220, 60), ("behind", -HOUR_S, 90, 40)):
        now = int(time.time() * 1000)
        clicks = [*walks(seed, users, 20, now - hours * HOUR_S * 1000), Click(f"{seed}-now", "now", ITEMS[0], now)]
        servers.click(clicks)
        produced += [click.event_id for click in clicks]
        trainer.environment = machine | clock(seconds)
        assert trainer.run() == 0, trainer.lines
    assert Counter(stored_clicks(trainer.data)["event_id"]) == Counter(produced)
    first, second = trainer.announced()
    assert first < second, "the newest release must be the last in the order of names"
    note("the trainer's clock an hour ahead, then an hour behind")
    servers.leave()


def trends(job: RunningJob) -> bool:
    """Whether what all do now is in the trending row by now."""
    now = int(time.time() * 1000)
    job.click([Click(f"trend-{now}", "trend", ITEM_IDS[0], now)])
    time.sleep(4)
    row = job.trending()
    return row is not None and row.event_time >= now
