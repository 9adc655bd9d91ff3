"""Kafka → Parquet: every click once by event day, the catalogue, and nothing of erased users.

One pass, from the stored offsets up to what Kafka held when the pass began:
 1. note the ends of `erasures`, then of `clicks`: a click older than an erasure is then in reach;
 2. clicks: decode, write parts by event day, sync, and only then move the stored offset;
 3. items: merge the newest word on each item into items.parquet;
 4. erasures: rewrite the parts that hold the user's earlier clicks;
 5. merge the small parts that many short passes leave (see parts.py).
A part is named by partition and first offset: a pass that is repeated after a crash writes the same
names again and so replaces its own work.

    clicks/day=2011-11-21/…    items.parquet    offsets.json    seen.json
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from confluent_kafka import Message

from schemas import topics
from schemas.avro import BadRecord, SchemaById
from schemas.click import Clicks, decode_clicks, latest
from schemas.erasure import decode_erasure
from schemas.errors import ContractError
from schemas.item import Item, decode_item
from trainer.broker import Reader, Span, reader
from trainer.config import Settings
from trainer.files import write_whole
from trainer.parts import erase, merge_parts, part_name, read_parts, remove_leftovers, write_parts
from trainer.progress import progress, say
from trainer.registry import registered_schemas

# Messages of one partition per part: about 50 MB in memory while decoded.
PART_MESSAGES = 100_000

ITEM_COLUMNS: dict[str, Any] = {
    "item_id": pl.String,
    "title": pl.String,
    "categories": pl.List(pl.String),
    "price": pl.Float64,
    "available": pl.Boolean,
    "published_at": pl.Int64,  # ms
    "gone": pl.Boolean,  # its last word was null; the other columns are from the word before
}


@dataclass(frozen=True)
class Collected:
    """What one pass brought."""

    clicks: int
    bad_clicks: int
    items: int
    erased_users: int
    lost: int  # messages that Kafka dropped before they were collected


class Offsets:
    """The next offset to read of each topic and partition, kept in offsets.json."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "offsets.json"
        stored = _json(self._file)
        self._cluster: str | None = stored.get("cluster")
        self._next: dict[str, dict[str, int]] = stored.get("next", {})

    def check_cluster(self, cluster: str) -> None:
        """Offsets mean nothing in another Kafka. Raises ContractError."""
        if self._cluster not in (None, cluster):
            raise ContractError(
                f"{self._file} was collected from Kafka cluster {self._cluster}, this is {cluster}",
                f"point trainer.data to another folder, or remove {self._file.parent}",
            )
        self._cluster = cluster

    def start(self, topic: str, partition: int, span: Span) -> tuple[int, int]:
        """(first offset to read, messages lost before it). Raises ContractError."""
        stored = self._next.get(topic, {}).get(str(partition), 0)
        if stored > span.high:
            raise ContractError(
                f"{topic} partition {partition} ends at {span.high}, but {stored} was read already",
                f"the topic was made anew: remove {self._file.parent}",
            )
        return max(stored, span.low), max(span.low - stored, 0)

    def store(self, topic: str, partition: int, following: int) -> None:
        """Remember, on disk, that everything before `following` is safe."""
        self._next.setdefault(topic, {})[str(partition)] = following
        content = json.dumps({"cluster": self._cluster, "next": self._next}, indent=1)
        write_whole(self._file, lambda path: path.write_text(content))

    def of(self, topic: str) -> dict[str, int]:
        """Next offsets of one topic by partition."""
        return dict(self._next.get(topic, {}))


def collect(settings: Settings, folder: Path) -> Collected:
    """Run one pass. Raises UnreachableError, ContractError."""
    with reader(settings) as source:
        return collect_from(source, settings, folder)


def collect_from(source: Reader, settings: Settings, folder: Path) -> Collected:
    """One pass over an open reader; errors as in `collect`."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets, schema_by_id = Offsets(folder), registered_schemas(settings)
    clicks, items, erasures = (settings.topic(name) for name in (topics.CLICKS, topics.ITEMS, topics.ERASURES))
    offsets.check_cluster(source.cluster_id())
    remove_leftovers(folder / "clicks")
    erasures_until = source.spans(erasures)
    clicks_until = source.spans(clicks)
    found, bad, lost = _collect_clicks(source, clicks, clicks_until, offsets, folder, schema_by_id)
    changed = _collect_items(source, items, offsets, folder, schema_by_id)
    erased = _erase(source, erasures, erasures_until, offsets, folder, schema_by_id)
    merge_parts(folder / "clicks")
    result = Collected(found, bad, changed, erased, lost)
    say(f"collected {found} clicks ({bad} bad records left out), {changed} items, erased {erased} users")
    return result


def stored_clicks(folder: Path) -> pl.DataFrame:
    """All collected clicks, each event_id once (its first copy); columns CLICK_COLUMNS. Raises ContractError."""
    return read_parts(folder / "clicks")


def stored_catalogue(folder: Path) -> pl.DataFrame:
    """All items ever named, the gone ones too; columns ITEM_COLUMNS, one row per item. Raises ContractError."""
    file = folder / "items.parquet"
    if not file.exists():
        return pl.DataFrame(schema=ITEM_COLUMNS)
    try:
        rows = pl.read_parquet(file)
        # Written before gone items were kept: all of them were there.
        rows = rows if "gone" in rows.columns else rows.with_columns(gone=False)
        return rows.select(ITEM_COLUMNS.keys())
    except (pl.exceptions.PolarsError, OSError) as problem:
        raise ContractError(
            f"{file} is damaged ({str(problem).splitlines()[0]})",
            f"restore it, or remove {folder} to collect again all that Kafka still has",
        ) from problem


def stored_items(folder: Path) -> pl.DataFrame:
    """The items that are there; columns ITEM_COLUMNS, one row per item. Raises ContractError."""
    return stored_catalogue(folder).filter(~pl.col("gone"))


def unseen_clicks(settings: Settings, folder: Path) -> bool:
    """Whether clicks were collected since `mark_seen`, or it was never called."""
    reached = Offsets(folder).of(settings.topic(topics.CLICKS))
    marker = folder / "seen.json"
    return not marker.exists() or _json(marker) != reached


def mark_seen(settings: Settings, folder: Path) -> None:
    """Remember that a cycle has been through with everything collected so far."""
    reached = Offsets(folder).of(settings.topic(topics.CLICKS))
    write_whole(folder / "seen.json", lambda path: path.write_text(json.dumps(reached)))


def _collect_clicks(
    source: Reader,
    topic: str,
    until: dict[int, Span],
    offsets: Offsets,
    folder: Path,
    schema_by_id: SchemaById | None,
) -> tuple[int, int, int]:
    found = bad = lost = 0
    starts = {partition: offsets.start(topic, partition, span) for partition, span in until.items()}
    waiting = sum(until[partition].high - start for partition, (start, _) in starts.items())
    with progress("collect", waiting) as advance:
        for partition, (first, missing) in starts.items():
            if missing:
                lost += missing
                say(
                    f"{topic} partition {partition}: offsets {first - missing} to {first - 1} "
                    f"expired before they were collected ({missing} messages lost)"
                )
            start = first
            while start < until[partition].high:
                boundary = (start // PART_MESSAGES + 1) * PART_MESSAGES
                end = min(boundary, until[partition].high)
                messages: list[Message] = []
                for batch in source.read(topic, partition, start, end):
                    messages.extend(batch)
                    advance(len(batch))
                rows, bad_rows = _click_rows(messages, schema_by_id)
                write_parts(folder / "clicks", part_name(partition, start), rows)
                offsets.store(topic, partition, end)
                found, bad, start = found + rows.height, bad + bad_rows, end
    return found, bad, lost


def _click_rows(messages: list[Message], schema_by_id: SchemaById | None) -> tuple[pl.DataFrame, int]:
    clicks, bad = decode_clicks(
        [message.value() for message in messages],
        [message.key() for message in messages],
        latest(int(time.time() * 1000), [message.timestamp()[1] for message in messages]),
        schema_by_id,
    )
    good = [messages[position] for position in clicks.positions.tolist()]
    rows = click_columns(clicks).with_columns(
        pl.Series("produced_at", [message.timestamp()[1] for message in good], pl.Int64),
        pl.Series("partition", [message.partition() for message in good], pl.Int32),
        pl.Series("offset", [message.offset() for message in good], pl.Int64),
    )
    return rows, len(bad)


def click_columns(clicks: Clicks) -> pl.DataFrame:
    """Decoded clicks as a frame: the columns of CLICK_COLUMNS that the clicks themselves carry."""
    return pl.DataFrame(
        {
            "event_id": clicks.event_ids,
            "user_id": clicks.user_ids,
            "item_id": clicks.item_ids,
            "event_time": clicks.event_time,
            "action": clicks.action,
            "item_hash": clicks.item_hash,
            "event_hash": clicks.event_hash,
        }
    )


def _collect_items(source: Reader, topic: str, offsets: Offsets, folder: Path, schema_by_id: SchemaById | None) -> int:
    latest: dict[str, Item | None] = {}
    reached: dict[int, int] = {}
    for partition, span in source.spans(topic).items():
        start, _ = offsets.start(topic, partition, span)  # compaction may drop old words: no loss
        for batch in source.read(topic, partition, start, span.high):
            for message in batch:
                item = decode_item(message.value(), message.key(), schema_by_id=schema_by_id)
                if not isinstance(item, BadRecord):
                    latest[item.item_id] = item if message.value() is not None else None
        reached[partition] = span.high
    if latest:
        merged = _merged(stored_catalogue(folder), latest)
        write_whole(folder / "items.parquet", merged.sort("item_id").write_parquet)
    for partition, following in reached.items():
        offsets.store(topic, partition, following)
    return len(latest)


def _merged(stored: pl.DataFrame, latest: dict[str, Item | None]) -> pl.DataFrame:
    """The catalogue after the newest words; None is the word of an item that is gone."""
    gone = [item_id for item_id, item in latest.items() if item is None]
    strangers = set(gone).difference(stored["item_id"])
    rows = [_item_row(item) for item in latest.values() if item is not None]
    rows += [(item_id, None, [], None, False, None, True) for item_id in strangers]
    left = pl.col("item_id").is_in(gone)
    kept = stored.filter(~pl.col("item_id").is_in(list(latest)) | left).with_columns(
        available=pl.col("available") & ~left, gone=pl.col("gone") | left
    )
    return pl.concat([kept, pl.DataFrame(rows, schema=ITEM_COLUMNS, orient="row")])


def _item_row(item: Item) -> tuple[Any, ...]:
    return (item.item_id, item.title, list(item.categories), item.price, item.available, item.published_at, False)


def _erase(
    source: Reader,
    topic: str,
    until: dict[int, Span],
    offsets: Offsets,
    folder: Path,
    schema_by_id: SchemaById | None,
) -> int:
    asked: dict[str, int] = {}
    for partition, span in until.items():
        start, _ = offsets.start(topic, partition, span)
        for batch in source.read(topic, partition, start, span.high):
            for message in batch:
                user = decode_erasure(message.value(), message.key(), schema_by_id=schema_by_id)
                if not isinstance(user, BadRecord):
                    asked[user] = max(asked.get(user, 0), message.timestamp()[1])
    if asked:
        erase(folder / "clicks", pl.DataFrame({"user_id": list(asked), "asked_at": list(asked.values())}))
    for partition, span in until.items():
        offsets.store(topic, partition, span.high)
    return len(asked)


def _json(file: Path) -> dict[str, Any]:
    """What a small file of ours holds; nothing when there is none. Raises ContractError."""
    try:
        content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    except ValueError as problem:
        raise ContractError(
            f"{file} is damaged ({problem})", f"remove {file.parent} to collect again all that Kafka still has"
        ) from problem
    return content
