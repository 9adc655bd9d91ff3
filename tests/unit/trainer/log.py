"""Kafka's log as plain lists: what a reader of the trainer sees, every field open to a test."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainer.broker import Span


@dataclass
class Record:
    """A message with the accessors of confluent_kafka.Message that the trainer uses."""

    record_partition: int
    record_offset: int
    record_key: bytes | None
    record_value: bytes | None
    produced_at: int  # ms

    def key(self) -> bytes | None:
        return self.record_key

    def value(self) -> bytes | None:
        return self.record_value

    def partition(self) -> int:
        return self.record_partition

    def offset(self) -> int:
        return self.record_offset

    def timestamp(self) -> tuple[int, int]:
        return 1, self.produced_at


class PowerCutError(Exception):
    """The process ends here."""


@dataclass
class Log:
    """A cluster. cut_after: reads until the power goes; low: first offset kept, by topic."""

    cluster: str = "one"
    cut_after: int = 10**9
    records: dict[str, list[list[Record]]] = field(default_factory=dict)
    low: dict[str, int] = field(default_factory=dict)

    def append(self, topic: str, key: str, value: bytes | None, produced_at: int = 0, partition: int = 0) -> None:
        partitions = self.records.setdefault(topic, [[], []])
        kept = partitions[partition]
        kept.append(Record(partition, len(kept), key.encode(), value, produced_at))

    def cluster_id(self) -> str:
        return self.cluster

    def spans(self, topic: str) -> dict[int, Span]:
        partitions = self.records.get(topic, [[], []])
        return {p: Span(self.low.get(topic, 0), len(kept)) for p, kept in enumerate(partitions)}

    def read(self, topic: str, partition: int, start: int, end: int) -> Iterator[list[Any]]:
        if self.cut_after == 0:
            raise PowerCutError
        self.cut_after -= 1
        wanted = self.records.get(topic, [[], []])[partition][start:end]
        if wanted:
            yield wanted
