"""Partitions of which nothing was read before a checkpoint begin with their first record, whatever Kafka was told."""

import time
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer, TopicPartition

from schemas.click import encode_click
from schemas.topics import CLICKS
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import FIRST, make_clicks, told
from tests.trial import note

READ, UNREAD = 0, 1
AT_REST_S = 5.0


@pytest.mark.long
def test_a_partition_never_read_before_the_checkpoint_is_read_from_its_first_record(
    start_job: Callable[..., RunningJob], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The job once went on beyond the checkpoint it starts from, as when that is the last one left whole."""
    job = start_job()
    job.publish(make_release(tmp_path_factory.mktemp("releases") / "first", *FIRST))
    clicks = make_clicks("unread", 120, users=5)
    topic = job.settings.topic(CLICKS)
    for click in clicks[:60]:
        job.send(CLICKS, click.user_id.encode(), encode_click(click), READ)
    job.eventually("they are read", lambda: job.metric("features_records") == 60)
    time.sleep(AT_REST_S)
    job.halt()
    for click in clicks[60:]:
        job.send(CLICKS, click.user_id.encode(), encode_click(click), UNREAD)
    group = Consumer({"bootstrap.servers": job.settings.kafka.bootstrap, "group.id": f"freshrec-{job.namespace}"})
    group.commit(offsets=[TopicPartition(topic, UNREAD, 60)], asynchronous=False)
    group.close()
    began = time.monotonic()
    job.resume()
    job.agree(told(clicks), FIRST)
    note("a partition that was not read before the checkpoint", time.monotonic() - began)
