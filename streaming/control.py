"""control: what changes the serving of all users, decoded once and sent to every scorer.

That is: releases that may be followed, roll-backs that a scorer made, and availability.

Every release message comes through here, one after the other: the one place where signatures and sequence numbers are
looked at. The last number taken is kept in Flink's state; a job that starts from nothing reads the topic from its
beginning and so comes to the same.
"""

import hashlib
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, OutputTag, RuntimeContext
from pyflink.datastream.state import ValueState, ValueStateDescriptor

from schemas.avro import BadRecord
from schemas.item import decode_item
from schemas.release import ModelRelease, decode_release
from schemas.roll_back import RollBack, decode_roll_back
from schemas.signing import Trust, stale
from streaming.batch import records_of
from streaming.config import job_version
from streaming.dead_letter import letters
from streaming.metrics import Metrics
from streaming.registry import registry

# Kinds of records: the order of Settings.control_topics.
RELEASE, ITEM, ROLL_BACK = 0, 1, 2


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

    def __init__(self, topics: list[str], registry_url: str | None, trust: Trust) -> None:
        self._topics = topics
        self._registry_url = registry_url
        self._trust = trust

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        self._version = job_version()
        self._registry = registry(self._registry_url)
        # Signatures are not verified in the task's thread: see signing.py.
        self._verifier = ThreadPoolExecutor(1, "verifier")
        # The last signed message that was taken: its sequence number and digest.
        self._taken: ValueState = runtime_context.get_state(ValueStateDescriptor("taken", Types.PICKLED_BYTE_ARRAY()))
        self._metrics = Metrics(runtime_context, "control").declare(["releases", "items", "dead_letters"])

    def close(self) -> None:
        """Called by Flink when the task ends."""
        self._verifier.shutdown(wait=False)

    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        """One micro-batch of messages in; `Availability`, `Announced` and `RollBack` out, dead letters beside them."""
        records = records_of(value)
        bad: list[BadRecord] = []
        available: dict[str, bool] = {}
        said: list[Announced | RollBack] = []
        for p, (kind, key, content) in enumerate(zip(records.kinds, records.keys, records.values, strict=True)):
            if kind == RELEASE:
                release = self._release(content, p)
                if isinstance(release, BadRecord):
                    bad.append(release)
                elif release is not None:
                    where = (self._topics[kind], records.partitions[p], records.offsets[p])
                    said.append(Announced(release, where, key, content or b""))
            elif kind == ROLL_BACK:
                back = decode_roll_back(content, p, self._registry)
                if isinstance(back, BadRecord):
                    bad.append(back)
                else:
                    said.append(back)
            else:
                item = decode_item(content, key, p, self._registry)
                if isinstance(item, BadRecord):
                    bad.append(item)
                else:
                    available[item.item_id] = item.available
        yield from letters(records, self._topics, bad, self._version)
        releases = sum(isinstance(message, Announced) for message in said)
        self._metrics.add(releases=releases, items=len(available), dead_letters=len(bad))
        if available:
            yield Availability(available)
            yield AVAILABILITY, Row(0, available)
        yield from said

    def _release(self, content: bytes | None, place: int) -> ModelRelease | BadRecord | None:
        """A release message that may be followed, or why not; None when it was taken before and came again."""
        release = decode_release(content, place, self._registry)
        if isinstance(release, BadRecord) or not self._trust.keys:
            return release
        assert content is not None, "an empty message is a bad record"
        refusal = self._verifier.submit(self._trust.refusal, release, self._topics[RELEASE]).result()
        if refusal is None:
            last, digest = self._taken.value() or (0, b"")
            own = hashlib.sha256(content).digest()
            if digest == own:
                return None
            refusal = stale(release, last, int(time.time() * 1000))
            if refusal is None:
                self._taken.update((release.sequence, own))
                return release
        return BadRecord(place, *refusal)
