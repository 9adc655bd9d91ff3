"""control: what changes the serving of all users, decoded once and sent to every scorer: releases and availability."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, OutputTag, RuntimeContext

from schemas.avro import BadRecord
from schemas.item import decode_item
from schemas.release import ModelRelease, decode_release
from streaming.batch import records_of
from streaming.config import job_version
from streaming.dead_letter import letters
from streaming.metrics import Metrics
from streaming.registry import registry

# Kinds of records: the order of Settings.control_topics.
RELEASE, ITEM = 0, 1


class Announced(NamedTuple):
    """A release, and where its message lies: topic, partition, offset, key, value."""

    release: ModelRelease
    where: tuple[str, int, int]
    key: bytes | None
    value: bytes


class Availability(NamedTuple):
    """Items by whether they may be recommended; the last message of each item counts."""

    available: dict[str, bool]


# (a key that is the same for all, availability by item): for the trending list.
AVAILABILITY = OutputTag("availability", Types.ROW([Types.INT(), Types.PICKLED_BYTE_ARRAY()]))


class Control(KeyedProcessFunction):  # type: ignore[misc]
    """Keyed by the one shard of the control topics, so that messages keep their order."""

    def __init__(self, topics: list[str], registry_url: str | None) -> None:
        self._topics = topics
        self._registry_url = registry_url

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        self._version = job_version()
        self._registry = registry(self._registry_url)
        self._metrics = Metrics(runtime_context, "control").declare(["releases", "items", "dead_letters"])

    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        """One micro-batch of messages in; `Availability` and `Announced` out, dead letters beside them."""
        records = records_of(value)
        bad: list[BadRecord] = []
        available: dict[str, bool] = {}
        announced: list[Announced] = []
        for p, (key, content) in enumerate(zip(records.keys, records.values, strict=True)):
            if records.kinds[p] == RELEASE:
                release = decode_release(content, p, self._registry)
                if isinstance(release, BadRecord):
                    bad.append(release)
                elif release.stage != "full":
                    # Serving it to everybody would be the opposite of what was asked for.
                    bad.append(
                        BadRecord(p, "stage-not-served", f"{release.version} is {release.stage}; full is served")
                    )
                else:
                    where = (
                        self._topics[records.kinds[p]],
                        records.partitions[p],
                        records.offsets[p],
                    )
                    announced.append(Announced(release, where, key, content or b""))
            else:
                item = decode_item(content, key, p, self._registry)
                if isinstance(item, BadRecord):
                    bad.append(item)
                else:
                    available[item.item_id] = item.available
        yield from letters(records, self._topics, bad, self._version)
        self._metrics.add(releases=len(announced), items=len(available), dead_letters=len(bad))
        if available:
            yield Availability(available)
            yield AVAILABILITY, Row(0, available)
        yield from announced
