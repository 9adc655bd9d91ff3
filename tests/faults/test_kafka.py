"""Kafka dies, stops, or no longer holds what was to be read: nothing is skipped in silence."""

import dataclasses
import subprocess
import sys
import time

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.click import Click, encode_click
from schemas.errors import UnreachableError
from schemas.topics import CLICKS
from tests.harness import RunningJob
from tests.traffic import FIRST, make_clicks, told
from tests.trial import Trial, note

# Checkpoints are 2 s apart: after so long at rest the newest one knows all that was read.
AT_REST_S = 5.0
PARTITION = 1


@pytest.mark.long
def test_kafka_killed_loses_nothing(job: RunningJob) -> None:
    with Trial(job, "Kafka killed (kill -9)"):
        job.stack.kill("kafka")
        job.stack.wait("kafka")


@pytest.mark.long
def test_kafka_stopped_for_a_while_loses_nothing(job: RunningJob) -> None:
    with Trial(job, "Kafka stopped for 40 s"):
        job.stack.restart("kafka", down_s=40)


@pytest.mark.long
def test_events_that_expired_unread_end_the_start_with_the_exact_gap(job: RunningJob) -> None:
    read, lost, later = of_one_user("read", "lost", "later")
    produce(job, read)
    job.agree(told(read), FIRST)
    time.sleep(AT_REST_S)
    job.halt()
    first = produce(job, lost)
    expire(job, first + len(lost))
    produce(job, later)
    gap = f"{job.settings.topic(CLICKS)} partition {PARTITION}: offsets {first} to {first + len(lost) - 1} are gone"
    with pytest.raises(UnreachableError, match=f"{gap}, {len(lost)} events"):
        job.resume()
    check = subprocess.run(
        [sys.executable, "-m", "streaming", "check"], env=job.environment, capture_output=True, text=True
    )
    # It knows what the job last told Kafka, which may be some checkpoints old; the start knows its checkpoint.
    assert check.returncode == 3 and f"to {first + len(lost) - 1} are gone" in check.stderr, check.stderr
    job.halt()
    # Told to, it goes on with what is there.
    began = time.monotonic()
    job.resume(FRESHREC_STREAMING__ACCEPT_GAP="true")
    job.agree(told([*read, *later]), FIRST)
    note("events expired unread: refused with the exact gap, then accepted", time.monotonic() - began)
    time.sleep(AT_REST_S)  # from the next checkpoint on the gap lies behind
    job.halt()
    job.resume()


@pytest.mark.long
def test_events_that_expire_while_the_job_runs_fail_it_and_are_not_skipped(job: RunningJob) -> None:
    """The job stands still behind a stopped Cassandra while Kafka drops what it has not read."""
    flood = make_clicks("flood", 60_000, users=200)
    with job.stack.locked():  # the supervisor leaves it down
        job.stack.server("cassandra").process.stop()
        job.click(flood)
        end = produce(job, make_clicks("behind", 1, users=1))
        expire(job, end)
        job.stack.server("cassandra").start()
    job.stack.wait("cassandra")

    def failed() -> bool:
        trouble = job.stack.server("jobmanager").trouble()
        return trouble is not None and "out of range" in trouble

    try:
        job.eventually("the job fails and says why", failed)
        check = subprocess.run(
            [sys.executable, "-m", "streaming", "check"], env=job.environment, capture_output=True, text=True
        )
        assert check.returncode == 3 and f"to {end - 1} are gone" in check.stderr, check.stderr
    finally:
        job.halt()  # the tests after this one get a job of their own
    note("events expire while the job runs: it fails, and `check` names the gap")


def of_one_user(*seeds: str) -> list[list[Click]]:
    """Clicks of one user, in order of time, in as many parts."""
    clicks = make_clicks("expired", 60 * len(seeds), users=1)
    parts = [clicks[start : start + 60] for start in range(0, len(clicks), 60)]
    return [
        [dataclasses.replace(click, event_id=f"{seed}-{click.event_id}") for click in part]
        for seed, part in zip(seeds, parts, strict=True)
    ]


def produce(job: RunningJob, clicks: list[Click]) -> int:
    """Produce to PARTITION; the offset of the first."""
    offsets = [job.send(CLICKS, c.user_id.encode(), encode_click(c), PARTITION)[1] for c in clicks]
    return offsets[0]


def expire(job: RunningJob, before: int) -> None:
    """Let Kafka drop what lies before an offset of PARTITION, as its retention does."""
    admin = AdminClient(job.settings.kafka.client())
    place = TopicPartition(job.settings.topic(CLICKS), PARTITION, before)
    admin.delete_records([place])[TopicPartition(place.topic, PARTITION)].result()
