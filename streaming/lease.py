"""lease: one job for each namespace; a second one says so and stops.

The process that starts the job stays a member of a group in Kafka for as long as the job runs. Whoever comes and finds
a member of another cluster in it is the second. A member that died is forgotten by Kafka after SESSION_S, one of the
same cluster is a former life of ours and no hindrance. Rows do not depend on it (see stamps.py): a lease that fails in
the midst of a job ends nothing.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from schemas.errors import ConfigError, UnreachableError
from schemas.topics import MODEL_RELEASES
from streaming.config import Settings
from streaming.topic import unreachable

ANSWER_S = 10.0
# Kafka takes a member for dead after so long without a word; the least that brokers allow.
SESSION_S = 6.0
# A dead member of another cluster may still stand there for a while: so long a start waits for it to go.
PATIENCE_S = SESSION_S + 4.0
_POLL_S = 0.5


@contextlib.contextmanager
def sole(settings: Settings, cluster: Mapping[str, str]) -> Iterator[None]:
    """Hold the lease for the length of a block. Raises ConfigError when another job has it, UnreachableError."""
    group = f"{settings.job_name}-lease"
    me = f"{socket.gethostname()}:{cluster.get('execution.checkpointing.dir', cluster.get('rest.port', ''))}"
    kafka = {**settings.kafka.client(), "log_level": 0}
    try:
        admin = AdminClient(kafka)
        _require_alone(admin, group, me)
        consumer = Consumer(
            {
                **kafka,
                "group.id": group,
                "client.id": me,
                "session.timeout.ms": int(SESSION_S * 1000),
                "heartbeat.interval.ms": 1000,
                "enable.auto.commit": False,
            }
        )
    except KafkaException as error:
        raise unreachable(settings, error) from error
    consumer.subscribe([settings.topic(MODEL_RELEASES)], on_assign=_read_nothing)
    ending = threading.Event()
    keeper = threading.Thread(target=_keep, args=(consumer, ending), name="lease", daemon=True)
    keeper.start()
    try:
        # Two that came at the same moment see each other now; the first in the order of names stays.
        deadline = time.monotonic() + PATIENCE_S
        while me not in (members := _members(admin, group)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if me not in members:
            raise UnreachableError(f"Kafka lets nobody into group {group}", "look at the broker's log")
        if min(members) != me:
            raise _second(group, min(members))
        yield
    finally:
        ending.set()
        keeper.join(ANSWER_S)


def _require_alone(admin: AdminClient, group: str, me: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while others := [member for member in _members(admin, group) if member != me]:
        if time.monotonic() > deadline:
            raise _second(group, others[0])
        time.sleep(_POLL_S)


def _second(group: str, other: str) -> ConfigError:
    return ConfigError(
        f"another job already runs under this name (group {group}, started by {other})",
        "stop it, or give this one a namespace of its own",
    )


def _members(admin: AdminClient, group: str) -> list[str]:
    found = admin.describe_consumer_groups([group], request_timeout=ANSWER_S)[group]
    try:
        return [member.client_id for member in found.result().members]
    except KafkaException as error:
        if error.args[0].name() == "GROUP_ID_NOT_FOUND":
            return []
        raise


def _keep(consumer: Consumer, ending: threading.Event) -> None:
    while not ending.is_set():
        with contextlib.suppress(KafkaException):
            consumer.poll(_POLL_S)
    consumer.close()


def _read_nothing(consumer: Consumer, partitions: list[TopicPartition]) -> None:
    consumer.pause(partitions)
