"""Reading a topic from its start to where it ends now, for look-ups; the job reads through Flink."""

import time
from collections.abc import Iterator

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.errors import ConfigError, ContractError, UnreachableError
from schemas.item import Item, decode_item
from schemas.release import ModelRelease, decode_release
from schemas.roll_back import RollBack, decode_roll_back, standing
from schemas.settings import CommonSettings
from schemas.signing import read_trust
from schemas.topics import ITEMS, MODEL_RELEASES, ROLL_BACKS
from streaming.registry import registry

ANSWER_S = 5.0
_BATCH = 1000
_WAIT_S = 0.1
_FORBIDDEN = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED)


def messages(settings: CommonSettings, topic: str) -> Iterator[Message]:
    """All messages of a topic up to its present end, by partition.

    Raises UnreachableError, ContractError without the topic, ConfigError without the right to it.
    """
    bootstrap = settings.kafka.bootstrap
    consumer = looking(settings)
    try:
        found = consumer.list_topics(topic, timeout=ANSWER_S).topics[topic]
        if found.error is not None and found.error.code() in _FORBIDDEN:
            raise KafkaException(found.error)
        if found.error is not None:
            raise ContractError(f"topic {topic} does not exist on {bootstrap}", "create it")
        for partition in found.partitions:
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER_S)
            consumer.assign([TopicPartition(topic, partition, low)])
            position = low
            while position < high:
                for message in consumer.consume(_BATCH, timeout=_WAIT_S):
                    error = message.error()
                    if error is None and _offset(message) < high:
                        yield message
                    elif error is not None and error.code() != KafkaError._PARTITION_EOF:
                        raise KafkaException(error)
                    # At the end of a compacted partition there may be no message, only its end.
                    position = high if error is not None else _offset(message) + 1
    except KafkaException as error:
        if error.args[0].code() in _FORBIDDEN:
            raise ConfigError(
                f"{settings.kafka.username} may not read topic {topic} on {bootstrap}",
                "come as another, or give him the right",
            ) from error
        raise unreachable(settings, error) from error
    finally:
        consumer.close()


def original(settings: CommonSettings, topic: str, partition: int, offset: int) -> Message | None:
    """The record at one place; None where it is gone. Raises UnreachableError."""
    consumer = looking(settings)
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER_S)
        if not low <= offset < high:
            return None
        consumer.assign([TopicPartition(topic, partition, offset)])
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            for message in consumer.consume(1, timeout=_WAIT_S):
                found = message.error() is None and _offset(message) == offset
                return message if found else None  # compaction may have taken it
    except KafkaException as error:
        raise unreachable(settings, error) from error
    finally:
        consumer.close()
    raise unreachable(settings, "it gives no record")


def looking(settings: CommonSettings, group: str = "freshrec-look") -> Consumer:
    """A consumer that joins no group and commits nothing by itself. group: whose positions it can tell, and set."""
    return Consumer(
        {
            **settings.kafka.client(),
            "group.id": group,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
            "socket.connection.setup.timeout.ms": int(ANSWER_S * 1000),
        }
    )


def unreachable(settings: CommonSettings, error: KafkaException | str) -> UnreachableError:
    """What a command says when Kafka does not answer."""
    reason = error if isinstance(error, str) else error.args[0].str()
    # A client that is not let in hears no more than one that finds nobody.
    login = ", kafka.username and its password" if settings.kafka.username else ""
    return UnreachableError(
        f"Kafka at {settings.kafka.bootstrap} does not answer ({reason})",
        f"start it, or correct kafka.bootstrap{login}",
    )


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None, "a message read from Kafka lies somewhere"
    return offset


def catalogue(settings: CommonSettings) -> dict[str, Item]:
    """The newest state of every item, by id."""
    items = {}
    schema_by_id = registry(settings.kafka.schema_registry_url)
    for message in messages(settings, settings.topic(ITEMS)):
        item = decode_item(message.value(), message.key(), schema_by_id=schema_by_id)
        if isinstance(item, Item):
            items[item.item_id] = item
    return items


def served_release(settings: CommonSettings) -> ModelRelease | None:
    """The release that serves everybody: announced last, signed as release_keys ask, and not rolled back by the job."""
    trust, topic = read_trust(settings.release_keys), settings.topic(MODEL_RELEASES)
    schema_by_id = registry(settings.kafka.schema_registry_url)
    releases = [decode_release(m.value(), schema_by_id=schema_by_id) for m in messages(settings, topic)]
    back = [decode_roll_back(m.value()) for m in messages(settings, settings.topic(ROLL_BACKS))]
    counting = [r for r in releases if isinstance(r, ModelRelease) and trust.refusal(r, topic) is None]
    return standing(counting, {b.manifest_sha256 for b in back if isinstance(b, RollBack)}).full
