"""Dead letters that can be used by now, sent again: after a new schema, a mended decoder, or when their time has come.

A dead letter is mended when this version's decoder takes its record at this moment; nobody has to say which reason
heals how. For each one, oldest first:
    1. it must not have been replayed before, nor be what came of a replay: a job that is older than this command would
       otherwise send the same record round and round
    2. its record: the letter's own bytes, or, where these were cut, the record that still lies in its topic
    3. the decoder takes it, and nothing newer has been said meanwhile: of an item, or by a user's erasure
    4. it goes to the topic and partition it was in, with its own key and bytes
    5. a letter with the reason "replayed" says so on the dead-letter topic, for step 1 of the next time
Killed between 4 and 5 it sends that chunk again: the job counts an event once among a user's newest ones.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from confluent_kafka import KafkaException, Message, Producer

from schemas.avro import MAX_VALUE_BYTES, BadRecord, SchemaById
from schemas.click import decode_clicks
from schemas.dead_letter import DeadLetter, bury, decode_dead_letter, encode_dead_letter
from schemas.erasure import decode_erasure
from schemas.errors import UnreachableError
from schemas.item import decode_item
from schemas.topics import CLICKS, ERASURES, ITEMS
from streaming.config import Settings, job_version
from streaming.registry import registry
from streaming.topic import messages, original, unreachable

REPLAYED = "replayed"
# Records that are sent and marked together: what a crash in between may send twice.
CHUNK = 500
FLUSH_S = 30.0
# topic, partition, offset
Place = tuple[str, int, int]


@dataclass(frozen=True)
class Selection:
    """Which dead letters: of these reasons (none: any), first seen from `since` until `until` (ms), at most `limit`."""

    reasons: frozenset[str] = frozenset()
    since: int = 0
    until: int = 1 << 62
    limit: int = 1 << 62

    def wants(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant, leaving the limit aside."""
        return (not self.reasons or letter.reason in self.reasons) and self.since <= letter.first_seen < self.until


@dataclass
class _Past:
    """What earlier replays left behind. done: places that were sent again; copies: places where the copies lie."""

    done: set[Place] = field(default_factory=set)
    copies: set[Place] = field(default_factory=set)


def replay(settings: Settings, selection: Selection, dry_run: bool) -> Counter[tuple[str, str, str]]:
    """Send mended records again; how many by topic, reason, and what became of them.

    Raises UnreachableError and ContractError; what was sent until then is marked.
    """
    judge = _Judge(settings)
    producer = _Sender(settings)
    counts: Counter[tuple[str, str, str]] = Counter()
    chosen = (letter for letter in _once(_letters(settings)) if selection.wants(letter))
    left = selection.limit
    while left and (chunk := list(islice(chosen, CHUNK))):
        mended: list[tuple[DeadLetter, bytes | None, bytes | None]] = []
        for letter in chunk:
            verdict = judge(letter)
            if isinstance(verdict, str):
                counts[letter.topic, letter.reason, verdict] += 1
            elif left:
                left -= 1
                mended.append((letter, *verdict))
                counts[letter.topic, letter.reason, "would be sent" if dry_run else "sent again"] += 1
        if mended and not dry_run:
            producer.send(mended)
    return counts


def _letters(settings: Settings) -> Iterator[DeadLetter]:
    """All dead letters up to the topic's present end."""
    for message in messages(settings, settings.dead_letter_topic):
        letter = decode_dead_letter(message.value())
        if isinstance(letter, DeadLetter):
            yield letter


def _once(letters: Iterable[DeadLetter]) -> Iterator[DeadLetter]:
    """One letter a record: a job that starts again from its checkpoint writes those since then once more."""
    seen: set[Place] = set()
    for letter in letters:
        place = (letter.topic, letter.partition, letter.offset)
        if letter.reason != REPLAYED and place not in seen:
            seen.add(place)
            yield letter


class _Judge:
    """Says of a dead letter (key, value) to send again, or why not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._schemas = registry(settings.kafka.schema_registry_url)
        self._past = _past(settings)
        self._newest_item: dict[bytes, int] | None = None
        self._erased: dict[bytes, int] | None = None

    def __call__(self, letter: DeadLetter) -> tuple[bytes | None, bytes | None] | str:
        place = (letter.topic, letter.partition, letter.offset)
        if place in self._past.done:
            return "was sent again before"
        if place in self._past.copies:
            return "came back: the job is older than this command, or set up otherwise"
        topics = {self._settings.topic(name): name for name in (CLICKS, ITEMS, ERASURES)}
        name = topics.get(letter.topic)
        if name is None:
            return "is to be sent by its owner: publish the release again"
        key, value = letter.key, letter.value
        if letter.value_size > MAX_VALUE_BYTES:
            return "is still oversized"
        if not letter.whole:
            found = original(self._settings, *place)
            if found is None or not _same(found, letter):
                return "was cut, and is gone from its topic"
            key, value = found.key(), found.value()
        return self._trouble(name, key, value, letter) or (key, value)

    def _trouble(self, name: str, key: bytes | None, value: bytes | None, letter: DeadLetter) -> str | None:
        if name == CLICKS:
            clicks, bad = decode_clicks([value], [key], int(time.time() * 1000), self._schemas)
            if bad:
                return f"is still {bad[0].reason}"
            if int(clicks.event_time[0]) <= self._erasures().get(key or b"", -1):
                return "is of a user who was erased since"
        elif name == ITEMS:
            item = decode_item(value, key, schema_by_id=self._schemas)
            if isinstance(item, BadRecord):
                return f"is still {item.reason}"
            if self._newest_items().get(key or b"", -1) > letter.offset:
                return "was followed by newer word of the item"
        else:
            user = decode_erasure(value, key, schema_by_id=self._schemas)
            if isinstance(user, BadRecord):
                return f"is still {user.reason}"
        return None

    def _newest_items(self) -> dict[bytes, int]:
        """The offset of the newest usable word on each item. An item has one partition, that of its key."""
        if self._newest_item is None:
            self._newest_item = dict(_usable_items(self._settings, self._schemas))
        return self._newest_item

    def _erasures(self) -> dict[bytes, int]:
        """When each erased user was erased last, ms."""
        if self._erased is None:
            self._erased = {}
            for message in messages(self._settings, self._settings.topic(ERASURES)):
                key = message.key() or b""
                if isinstance(decode_erasure(message.value(), key, schema_by_id=self._schemas), str):
                    self._erased[key] = max(self._erased.get(key, -1), message.timestamp()[1])
        return self._erased


def _usable_items(settings: Settings, schema_by_id: SchemaById | None) -> Iterator[tuple[bytes, int]]:
    for message in messages(settings, settings.topic(ITEMS)):
        key = message.key()
        if key and not isinstance(decode_item(message.value(), key, schema_by_id=schema_by_id), BadRecord):
            yield key, message.offset() or 0


def _past(settings: Settings) -> _Past:
    past = _Past()
    for letter in _letters(settings):
        copy = re.fullmatch(r"sent again as (\d+)/(\d+)", letter.detail) if letter.reason == REPLAYED else None
        if copy:
            past.done.add((letter.topic, letter.partition, letter.offset))
            past.copies.add((letter.topic, int(copy[1]), int(copy[2])))
    return past


def _same(message: Message, letter: DeadLetter) -> bool:
    """Whether a record is the one of the letter: a topic that was made anew has other records at old places."""
    found = bury(message.value(), message.key(), ("", 0, 0), "", "", 0, "")
    kept = (letter.value_size, letter.value_sha256, letter.value or b"", letter.key or b"")
    return (found.value_size, found.value_sha256, found.value or b"", found.key or b"") == kept


class _Sender:
    """Sends records and then their marks, each acknowledged before it returns."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = Producer(
            {**settings.kafka.client(), "enable.idempotence": True, "log_level": 0, "linger.ms": 5}
        )

    def send(self, mended: Iterable[tuple[DeadLetter, bytes | None, bytes | None]]) -> None:
        """Raises UnreachableError when Kafka does not take all; those it took are marked."""
        taken: list[tuple[DeadLetter, int, int]] = []
        refused: list[str] = []
        for letter, key, value in mended:

            def delivered(error: object, message: Message, letter: DeadLetter = letter) -> None:
                if error is not None:
                    refused.append(str(error))
                else:
                    taken.append((letter, message.partition() or 0, message.offset() or 0))

            self._producer.produce(letter.topic, value, key, partition=letter.partition, on_delivery=delivered)
        unsent = self._flush()
        now_ms, version = int(time.time() * 1000), job_version()
        for letter, partition, offset in taken:
            place = (letter.topic, letter.partition, letter.offset)
            mark = bury(None, letter.key, place, REPLAYED, f"sent again as {partition}/{offset}", now_ms, version)
            self._producer.produce(
                self._settings.dead_letter_topic,
                encode_dead_letter(mark),
                letter.key or b"",
                on_delivery=lambda error, _: refused.append(str(error)) if error is not None else None,
            )
        unsent += self._flush()
        if unsent or refused:
            kafka, reason = self._settings.kafka.bootstrap, refused[0] if refused else "no answer"
            raise UnreachableError(
                f"Kafka at {kafka} does not take all records ({reason})",
                "see that it runs, and replay again",
            )

    def _flush(self) -> int:
        try:
            return self._producer.flush(FLUSH_S)
        except KafkaException as error:
            raise unreachable(self._settings, error) from error
