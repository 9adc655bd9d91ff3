"""After a fault every accepted event is in the state and every row is what the job in plain Python computes.

One job with its supervisor; each test has users of its own, sends clicks at a steady rate while the fault happens,
polls rows all through it, and compares at the end, user by user.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from cassandra import DriverException
from cassandra.cluster import NoHostAvailable

from schemas.click import Click
from tests.harness import RunningJob
from tests.oracle import Oracle
from tests.releases import make_release
from tests.traffic import FIRST, ITEM_IDS, make_clicks

PER_SECOND = 150
# So many that some click for the last time while the fault lasts: a row that is lost then is never written again.
USERS = 300
# So late that what a user did after the fault does not fill the state again: a state that is lost then shows.
FAULT_AT = 0.7


@pytest.fixture(scope="module")
def job(start_job: Callable[..., RunningJob], tmp_path_factory: pytest.TempPathFactory) -> RunningJob:
    """A job that serves FIRST, with a supervisor that brings back what dies."""
    job = start_job()
    job.publish(make_release(tmp_path_factory.mktemp("releases") / "first", *FIRST))

    def serves() -> bool:
        job.click([Click(f"probe-{time.time_ns()}", "probe", ITEM_IDS[0], int(time.time() * 1000))])
        row = job.row("probe")
        return row is not None and row.source == "model"

    job.eventually("the first release serves", serves)
    return job


@contextmanager
def traffic(job: RunningJob, seed: str, seconds: float) -> Iterator[Oracle]:
    """Clicks for so long, from before the fault until after it, and a reader that watches rows all the time."""
    clicks = make_clicks(seed, int(seconds * PER_SECOND), users=USERS)
    oracle = Oracle()
    for click in clicks:
        oracle.click(click)
    done = threading.Event()
    failures: list[BaseException] = []

    def feed() -> None:
        try:
            job.click(clicks, PER_SECOND)
        except BaseException as error:
            failures.append(error)

    def watch() -> None:
        written = dict.fromkeys(oracle.events, 0)
        while not done.wait(0.2):
            for user in written:
                try:
                    row = job.row(user)
                except (DriverException, NoHostAvailable):
                    break  # Cassandra is down; the reader tries again
                if row is None:
                    continue
                if row.write_time < written[user]:
                    failures.append(AssertionError(f"the row of {user} went back"))
                if row.source != "model" or row.model_version != FIRST[2]:
                    failures.append(AssertionError(f"a row of {row.source} {row.model_version}"))
                written[user] = row.write_time

    threads = [threading.Thread(target=feed), threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    time.sleep(seconds * FAULT_AT)
    try:
        yield oracle
        threads[0].join()
        job.agree(oracle, FIRST)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:3]


def test_kill_9_of_the_taskmanager_loses_nothing(job: RunningJob) -> None:
    with traffic(job, "taskmanager", seconds=24):
        job.stack.kill("taskmanager-1")
        time.sleep(6)
        job.stack.wait("taskmanager-1")


def test_kill_9_of_the_jobmanager_loses_nothing(job: RunningJob) -> None:
    with traffic(job, "jobmanager", seconds=24):
        job.stack.kill("jobmanager")
        time.sleep(3)
        job.stack.wait("jobmanager")


def test_a_restart_of_cassandra_loses_nothing(job: RunningJob) -> None:
    with traffic(job, "cassandra", seconds=24):
        job.stack.restart("cassandra", down_s=3)


def test_a_restart_of_kafka_loses_nothing(job: RunningJob) -> None:
    with traffic(job, "kafka", seconds=24):
        job.stack.restart("kafka", down_s=3)


def test_events_sent_while_the_job_is_down_are_all_taken_up(job: RunningJob) -> None:
    before = make_clicks("down", 400, users=10)
    oracle = Oracle()
    for click in before:
        oracle.click(click)
    job.click(before)
    job.agree(oracle, FIRST)
    job.stack.supervisor.stop()
    job.stack.stop_flink()
    while_down = [
        Click(
            f"later-{click.event_id}",
            click.user_id,
            click.item_id,
            click.event_time + 1,
            click.action,
        )
        for click in before
    ]
    for click in while_down:
        oracle.click(click)
    job.click(while_down)
    job.resume()
    job.agree(oracle, FIRST)
