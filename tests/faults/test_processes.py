"""Processes die as they like: nothing is lost, no row goes back, and what died comes back by itself."""

import random
import time

import pytest

from deploy.local.flink import newest_checkpoint
from schemas.click import Click
from schemas.errors import UnreachableError
from tests.harness import RunningJob
from tests.oracle import Oracle
from tests.traffic import FIRST, make_clicks, told
from tests.trial import Trial, note

# What a job says whose checkpoint has users in it that wait.
GOES_ON_WAITING = "have waited since before"


def test_kill_9_of_the_taskmanager_loses_nothing(job: RunningJob) -> None:
    with Trial(job, "kill -9 of the TaskManager"):
        job.stack.kill("taskmanager-1")


@pytest.mark.long
def test_kill_9_of_the_jobmanager_loses_nothing(job: RunningJob) -> None:
    with Trial(job, "kill -9 of the JobManager"):
        job.stack.kill("jobmanager")


def test_kill_9_of_everything_and_a_start_go_on_from_the_newest_checkpoint(job: RunningJob) -> None:
    with Trial(job, "kill -9 of everything at once, then `up`"):
        job.stack.supervisor.kill()
        for server in job.stack.servers():
            server.process.kill()
        assert job.stack.running() == []
        came_from = newest_checkpoint(job.stack.state / "flink" / "checkpoints")
        assert came_from is not None
        job.stack.start_servers()
        job.resume()
    job.eventually("the checkpoint it came from goes when it is superseded", lambda: not came_from.exists())
    assert "resume: going on from" in job.stack.server("jobmanager").process.log_file.read_text()


@pytest.mark.long
def test_a_start_without_a_checkpoint_is_refused_while_there_are_rows_unless_told(job: RunningJob) -> None:
    clicks = make_clicks("anew", 400, users=20)
    job.click(clicks)
    job.agree(told(clicks), FIRST)
    # Told to, it counts all of Kafka again, and rows that know more than it does yet stay as they are.
    with Trial(job, "checkpoints lost: start refused, then started empty on purpose"):
        job.halt()
        with pytest.raises(UnreachableError, match=r"holds rows, and there is no checkpoint.*start_empty"):
            job.start()
        job.halt()
        job.start(FRESHREC_STREAMING__START_EMPTY="true")
    job.agree(told(clicks), FIRST)


@pytest.mark.long
def test_events_sent_while_the_job_is_down_are_all_taken_up(job: RunningJob) -> None:
    clicks = make_clicks("down", 800, users=10)
    job.click(clicks[:400])
    job.agree(told(clicks[:400]), FIRST)
    job.halt()
    job.click(clicks[400:])
    began = time.monotonic()
    job.resume()
    job.agree(told(clicks), FIRST)
    note("job stopped while events go on, then started", time.monotonic() - began)


@pytest.mark.long
@pytest.mark.parametrize("part", ["first", "second"])
def test_kill_9_of_the_taskmanager_at_ten_random_points_of_a_batch_loses_nothing(job: RunningJob, part: str) -> None:
    chance = random.Random(part)
    rest = job.stack.rest
    running = rest.jobs()[-1].id
    with Trial(job, f"kill -9 of the TaskManager five times, each amid a backlog ({part} five of ten)"):
        for number in range(5):
            # A burst makes micro-batches of hundreds, and the blow falls while one is under way.
            now = int(time.time() * 1000)
            job.click([Click(f"{part}-{number}-{n}", f"burst-{n % 500}", "item-001", now) for n in range(4000)])
            restored = rest.restored(running)
            time.sleep(chance.random() * 0.5)
            job.stack.kill("taskmanager-1")
            job.eventually("it restarts", lambda before=restored: rest.restored(running) > before)  # type: ignore[misc]
            job.eventually("it runs", lambda: job.stack.server("jobmanager").trouble() is None)


@pytest.mark.long
def test_kill_9_while_rows_wait_loses_none_of_them(job: RunningJob) -> None:
    """The blow follows a checkpoint of a job whose users wait; it is tried again where they had not to wait so long."""
    rest = job.stack.rest
    running = rest.jobs()[-1].id
    oracle = Oracle()
    log = job.stack.server("taskmanager-1").process.log_file

    def says(text: str) -> int:
        return log.read_text(errors="replace").count(text)

    with Trial(job, "kill -9 of the TaskManager while rows wait"):
        before = says(GOES_ON_WAITING)
        for number in range(5):
            clicks = make_clicks(f"wait-{number}", 120_000, users=2_000)
            for click in clicks:
                oracle.click(click)
            behind, restored = says("is behind"), rest.restored(running)
            with job.asleep():
                job.click(clicks)
            job.eventually("the job is behind", lambda before=behind: says("is behind") > before)  # type: ignore[misc]
            newest = newest_checkpoint(job.stack.state / "flink" / "checkpoints")
            job.eventually(
                "there is a checkpoint",
                lambda before=newest: newest_checkpoint(job.stack.state / "flink" / "checkpoints") != before,  # type: ignore[misc]
            )
            job.stack.kill("taskmanager-1")
            job.eventually("it restarts", lambda before=restored: rest.restored(running) > before)  # type: ignore[misc]
            job.eventually("it runs", lambda: job.stack.server("jobmanager").trouble() is None)
            if says(GOES_ON_WAITING) > before:
                break
        assert says(GOES_ON_WAITING) > before, "no checkpoint held users that waited"
    job.agree(oracle, FIRST, users=sorted(oracle.events)[::10])
