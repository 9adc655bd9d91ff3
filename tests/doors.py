"""Doors of a secure stack: a probe opens one as somebody, and says what refused him: "" when he got in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from cassandra import DriverException
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy.local.cassandra import cql
from schemas.errors import UnreachableError
from schemas.settings import CommonSettings
from schemas.topics import CLICKS, DEAD_LETTERS, MODEL_RELEASES, ROLL_BACKS

ANSWER_S = 10.0
# What says that a door stays shut. A broker has no word for somebody who does not even speak its language: it hangs up.
REFUSED = (
    "_ALL_BROKERS_DOWN",
    "_AUTHENTICATION",
    "_SSL",
    "_TRANSPORT",
    "GROUP_AUTHORIZATION_FAILED",
    "TOPIC_AUTHORIZATION_FAILED",
)
Probe = Callable[[CommonSettings], str]


def _said(act: Callable[[list[str]], str | None]) -> str:
    """The word of the first refusal, as the client's library has it."""
    errors: list[str] = []
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        outcome = act(errors)
        refusals = [word for word in errors if word in REFUSED]
        if outcome is not None or refusals:
            return refusals[0] if refusals else str(outcome)
    raise AssertionError(f"neither in nor refused: {errors}")


def write_to(topic: str) -> Probe:
    def probe(settings: CommonSettings) -> str:
        outcome: list[KafkaError | None] = []
        errors: list[str] = []
        producer = Producer({**settings.kafka.client(), "log_level": 0, "error_cb": lambda e: errors.append(e.name())})
        producer.produce(settings.topic(topic), b"x", b"k", on_delivery=lambda error, _: outcome.append(error))

        def act(said: list[str]) -> str | None:
            producer.poll(0.1)
            said += [*errors, *(error.name() for error in outcome if error is not None)]
            return "" if any(error is None for error in outcome) else None

        word = _said(act)
        producer.purge()
        return word

    return probe


def read_from(topic: str) -> Probe:
    def probe(settings: CommonSettings) -> str:
        errors: list[str] = []
        watch: dict[str, Any] = {
            "log_level": 0,
            "error_cb": lambda e: errors.append(e.name()),
            "enable.partition.eof": True,
        }
        group = "freshrec-trainer" if settings.kafka.username == "trainer" else "freshrec-look"
        consumer = Consumer({**settings.kafka.client(), **watch, "group.id": group})
        consumer.assign([TopicPartition(settings.topic(topic), 0, 0)])

        def act(said: list[str]) -> str | None:
            message: Message | None = consumer.poll(0.1)
            if message is None:
                # Of a topic that may not even be seen nothing comes, not even an error.
                with suppress(KafkaException):
                    unseen = (
                        consumer.list_topics(settings.topic(topic), timeout=1.0).topics[settings.topic(topic)].error
                    )
                    said += [unseen.name()] if unseen is not None else []
            error = message.error() if message is not None else None
            said += [*errors, *([error.name()] if error is not None else [])]
            ended = error is not None and error.code() == KafkaError._PARTITION_EOF
            return "" if ended or (message is not None and error is None) else None

        try:
            return _said(act)
        finally:
            consumer.close()

    return probe


def administer(ask: Callable[[AdminClient, CommonSettings], Mapping[Any, Any]]) -> Probe:
    """ask: one thing, as the client's library has it, by name a future."""

    def probe(settings: CommonSettings) -> str:
        errors: list[str] = []
        watch: dict[str, Any] = {"log_level": 0, "error_cb": lambda e: errors.append(e.name())}
        admin = AdminClient({**settings.kafka.client(), **watch})
        (future,) = ask(admin, settings).values()

        def act(said: list[str]) -> str | None:
            admin.poll(0.1)
            said += errors
            if not future.done():
                return None
            try:
                future.result()
            except KafkaException as error:
                said.append(error.args[0].name())
            return "" if not said else None

        return _said(act)

    return probe


def make_a_topic(admin: AdminClient, settings: CommonSettings) -> Mapping[Any, Any]:
    return admin.create_topics([NewTopic(settings.topic(f"new-{time.time_ns()}"), 1, 1)], request_timeout=ANSWER_S)


def move_the_job(admin: AdminClient, settings: CommonSettings) -> Mapping[Any, Any]:
    """Tell Kafka where a job goes on that has no checkpoint."""
    place = TopicPartition(settings.topic(CLICKS), 0, 0)
    group = ConsumerGroupTopicPartitions(f"freshrec-{settings.namespace}", [place])
    return admin.alter_consumer_group_offsets([group], request_timeout=ANSWER_S)


def ask(statement: str) -> Probe:
    def probe(settings: CommonSettings) -> str:
        try:
            with cql(settings.cassandra) as session:
                session.execute(statement.format(keyspace=settings.keyspace), timeout=ANSWER_S)
        except (UnreachableError, DriverException) as error:
            return str(error)
        return ""

    return probe


ROW = "(user_id, item_ids) VALUES ('intruder', ['item-000'])"
# what a door leads to: who may pass.
DOORS: dict[str, tuple[Probe, set[str]]] = {
    "write clicks": (write_to(CLICKS), {"admin", "producer"}),
    "read clicks": (read_from(CLICKS), {"admin", "job", "trainer"}),
    "read dead letters": (read_from(DEAD_LETTERS), {"admin", "job"}),
    "move the job": (administer(move_the_job), {"admin", "job"}),
    "announce a release": (write_to(MODEL_RELEASES), {"admin", "trainer"}),
    "take a release back": (write_to(ROLL_BACKS), {"admin", "job"}),
    "write a dead letter": (write_to(DEAD_LETTERS), {"admin", "job"}),
    "make a topic": (administer(make_a_topic), {"admin"}),
    "read rows": (ask("SELECT * FROM {keyspace}.recommendations"), {"admin", "job", "reader"}),
    "write rows": (ask(f"INSERT INTO {{keyspace}}.recommendations {ROW}"), {"admin", "job"}),
    "remove all rows": (ask("TRUNCATE {keyspace}.trending"), {"admin", "job"}),
    "remove the table": (ask("DROP TABLE IF EXISTS {keyspace}.no_such_table"), {"admin"}),
    "make an account": (ask("CREATE ROLE IF NOT EXISTS intruder"), {"admin"}),
}
