"""Where the job stands in Kafka, and what Kafka still holds."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.errors import ContractError
from streaming.config import Settings
from streaming.topic import ANSWER_S, looking, unreachable

# topic, partition
Partition = tuple[str, int]


def spans(settings: Settings, topics: list[str]) -> dict[Partition, tuple[int, int]]:
    """First offset and end of each partition. Raises UnreachableError, ContractError."""
    with _consumer(settings, f"{settings.job_name}-look") as consumer:
        return {place: _span(consumer, place) for place in partitions(consumer, topics)}


def committed(settings: Settings) -> dict[Partition, int]:
    """The next offset of each partition of events, as the job last told Kafka. Raises as `spans`."""
    with _consumer(settings, settings.job_name) as consumer:
        places = [TopicPartition(*place) for place in partitions(consumer, settings.event_topics)]
        found = consumer.committed(places, timeout=ANSWER_S)
        return {(one.topic, one.partition): one.offset for one in found if one.offset >= 0}


def gaps(positions: Mapping[Partition, int], held: Mapping[Partition, tuple[int, int]]) -> list[str]:
    """What Kafka no longer holds of what comes next at these positions, a text for each partition."""
    found = []
    for (topic, partition), position in sorted(positions.items()):
        low, high = held.get((topic, partition), (position, position))
        if position < low:
            found.append(
                f"{topic} partition {partition}: offsets {position} to {low - 1} are gone, {low - position} events"
            )
        elif position > high:
            found.append(
                f"{topic} partition {partition}: it ends at offset {high}, {position} was to come next: another topic"
            )
    return found


def require_no_gap(found: list[str]) -> None:
    """Raises ContractError where there is one."""
    if found:
        raise ContractError(
            f"Kafka no longer holds what the job has not yet read: {', '.join(found)}",
            "bring the events back, or go on without them with streaming.accept_gap=true",
        )


def begin(settings: Settings, positions: Mapping[Partition, int]) -> None:
    """Let what was never read begin with the first record there is. positions: where a checkpoint left off, if any.

    Flink reads a partition of which a checkpoint knows no position from what the group has committed: nothing where the
    group is forgotten, and too much where the job once went on beyond the checkpoint that it now starts from.
    """
    for group, topics in (
        (settings.job_name, settings.event_topics),
        (settings.control_group, settings.control_topics),
    ):
        with _consumer(settings, group) as consumer:
            starts = [
                TopicPartition(*place, _span(consumer, place)[0])
                for place in partitions(consumer, topics)
                if place not in positions
            ]
            if starts:
                consumer.commit(offsets=starts, asynchronous=False)


@contextmanager
def _consumer(settings: Settings, group: str) -> Iterator[Consumer]:
    """One that is closed in the end. Raises UnreachableError."""
    consumer = looking(settings, group)
    try:
        yield consumer
    except KafkaException as error:
        raise unreachable(settings, error) from error
    finally:
        consumer.close()


def partitions(consumer: Consumer, topics: list[str]) -> list[Partition]:
    """All partitions of these topics. Raises ContractError without one of them, KafkaException."""
    found = consumer.list_topics(timeout=ANSWER_S).topics
    for topic in topics:
        if topic not in found:
            raise ContractError(f"topic {topic} does not exist", "create the topics (python -m deploy.local up does)")
    return [(topic, partition) for topic in topics for partition in sorted(found[topic].partitions)]


def _span(consumer: Consumer, place: Partition) -> tuple[int, int]:
    low, high = consumer.get_watermark_offsets(TopicPartition(*place), timeout=ANSWER_S)
    return int(low), int(high)
