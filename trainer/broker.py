"""The trainer's end of Kafka: reads partitions between two offsets, sends one message surely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from schemas.errors import ContractError, UnreachableError
from trainer.config import Settings

# How long a broker may take to answer before it counts as unreachable.
ANSWER_SECONDS = 8.0
# A poll returns when a message is there; this is only how often an idle wait looks up.
POLL_SECONDS = 1.0
# A broker that has nothing to give says so after this long: the end of a partition is not waited for.
FETCH_WAIT_MS = 50
# What the client calls the end of a partition (its name there begins with an underscore).
PARTITION_END = -191
# Messages per poll: some hundred bytes each.
POLL_MESSAGES = 10_000
# A partition that should hold more messages but gives none for so long is a broker in trouble.
SILENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Span:
    """Offsets low ≤ offset < high that a partition holds."""

    low: int
    high: int


class Reader:
    """Reads topics without a consumer group: whoever calls keeps the offsets."""

    def __init__(self, settings: Settings) -> None:
        self._bootstrap = settings.kafka.bootstrap
        self._consumer = Consumer(
            {
                **settings.kafka.client(),
                "group.id": "freshrec-trainer",  # required by the client, never committed to
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "log_level": 0,  # failures arrive as exceptions, said once by us
            }
        )

    def cluster_id(self) -> str:
        """Which Kafka cluster this is. Raises UnreachableError."""
        with _explained(self._bootstrap):
            return str(self._consumer.list_topics(timeout=ANSWER_SECONDS).cluster_id)

    def spans(self, topic: str) -> dict[int, Span]:
        """What each partition of a topic holds. Raises UnreachableError, ContractError."""
        with _explained(self._bootstrap):
            found = self._consumer.list_topics(topic, timeout=ANSWER_SECONDS).topics[topic]
            if found.error is not None:
                raise ContractError(
                    f"Kafka at {self._bootstrap} has no topic {topic} ({found.error.str()})",
                    "create the topics (python -m deploy.local up does)",
                )
            return {
                partition: Span(
                    *self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER_SECONDS)
                )
                for partition in sorted(found.partitions)
            }

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[list[Message]]:
        """Batches of the messages with start ≤ offset < end. Raises UnreachableError."""
        if start >= end:
            return
        with _explained(self._bootstrap):
            self._consumer.assign([TopicPartition(topic, partition, start)])
            silent = 0.0
            while True:
                polled = self._polled()
                silent = 0.0 if polled else silent + POLL_SECONDS
                if silent >= SILENCE_SECONDS:
                    raise UnreachableError(
                        f"Kafka at {self._bootstrap} gave nothing of {topic} partition {partition} "
                        f"for {SILENCE_SECONDS:.0f} s",
                        "look at the broker's log",
                    )
                batch, ended = [], False
                for message in polled:
                    error = message.error()
                    if error is not None:
                        if error.code() != PARTITION_END:
                            raise KafkaException(error)
                        # Offsets may have holes (compaction): the end of the partition ends it too.
                        ended = True
                        continue
                    offset = message.offset() or 0
                    if offset < end:
                        batch.append(message)
                    ended = ended or offset >= end - 1
                if batch:
                    yield batch
                if ended:
                    return

    def read_all(self, topic: str) -> list[Message]:
        """Every message that a (small) topic holds now, by partition and offset."""
        return [
            message
            for partition, span in self.spans(topic).items()
            for batch in self.read(topic, partition, span.low, span.high)
            for message in batch
        ]

    def _polled(self) -> list[Message]:
        """What is there, as soon as something is; `consume` alone would wait until all it may take is there."""
        first = self._consumer.poll(POLL_SECONDS)
        return [first, *self._consumer.consume(POLL_MESSAGES, 0.0)] if first is not None else []

    def close(self) -> None:
        """Let go of the connections."""
        self._consumer.close()


@contextmanager
def reader(settings: Settings) -> Iterator[Reader]:
    """A reader for the length of a block."""
    opened = Reader(settings)
    try:
        yield opened
    finally:
        opened.close()


def send(settings: Settings, topic: str, key: bytes, value: bytes) -> int:
    """Send one message and wait until all replicas have it; returns its offset. A retry may send it twice.

    Raises UnreachableError when it was not acknowledged.
    """
    outcome: list[tuple[KafkaError | None, Message]] = []
    producer = Producer(
        {
            **settings.kafka.client(),
            # Not idempotent: asking for a producer's id takes half a second, and a release named twice is named once.
            "acks": "all",
            "message.timeout.ms": int(ANSWER_SECONDS * 1000),
            "log_level": 0,
        }
    )
    producer.produce(topic, value, key, on_delivery=lambda *result: outcome.append(result))
    left = producer.flush(ANSWER_SECONDS + 2.0)
    error = outcome[0][0] if outcome else None
    if left or not outcome or error is not None:
        raise UnreachableError(
            f"Kafka at {settings.kafka.bootstrap} did not acknowledge a message on {topic}"
            f" ({error.str() if error is not None else 'no answer'})",
            "start it, or set kafka.bootstrap (FRESHREC_KAFKA__BOOTSTRAP)",
        )
    return int(outcome[0][1].offset() or 0)


@contextmanager
def _explained(bootstrap: str) -> Iterator[None]:
    try:
        yield
    except KafkaException as problem:
        error: KafkaError = problem.args[0]
        raise UnreachableError(
            f"Kafka at {bootstrap} does not answer ({error.str()})",
            "start it, or set kafka.bootstrap (FRESHREC_KAFKA__BOOTSTRAP)",
        ) from problem
