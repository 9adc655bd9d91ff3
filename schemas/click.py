"""A click: one action of one user on one item, alone or as the columns of a micro-batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.avro import (
    CONFLUENT,
    CONFLUENT_HEADER_BYTES,
    HEADER_BYTES,
    MAX_VALUE_BYTES,
    SINGLE_OBJECT,
    BadRecord,
    Schema,
    SchemaById,
    encode,
    published,
    writer_schema,
)
from schemas.columns import decode_columns
from schemas.evolution import conflicts
from schemas.hashes import hash_and_look
from schemas.ids import MAX_ID_BYTES, id_trouble, shown
from schemas.spans import Columns, Spans, spans_of

# The order is the code kept in state: append only.
ACTIONS = ("VIEW", "CLICK", "CART", "PURCHASE", "LIKE", "DISLIKE", "SHARE", "IMPRESSION")
DEFAULT_ACTION = "CLICK"
# 2000-01-01: earlier times are seconds taken for milliseconds, or an unset clock.
EARLIEST_MS = 946_684_800_000
# A producer's clock may run this far ahead before its events are refused.
MAX_AHEAD_MS = 5 * 60 * 1000
_EMPTY = np.frombuffer(b"", np.uint8)
_ID_FIELDS = ("event_id", "user_id", "item_id")


@dataclass(frozen=True)
class Click:
    """One event as a producer writes it. event_time in ms since 1970, UTC; dwell_ms in ms."""

    event_id: str
    user_id: str
    item_id: str
    event_time: int
    action: str = DEFAULT_ACTION
    dwell_ms: int | None = None
    value: float | None = None
    request_id: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)


def encode_click(click: Click) -> bytes:
    """The Kafka value of a click; its key is `click.user_id.encode()`."""
    return encode("click_event", vars(click))


@dataclass(frozen=True)
class Clicks:
    """The N good records of a batch as columns.

    buffer: all values of the batch. user, item, event: where the ids lie in it.
    event_time: int64[N] ms. action: uint8[N], index into ACTIONS.
    user_hash, item_hash, event_hash: uint64[N]. positions: int64[N], index in the batch that was decoded.
    """

    buffer: NDArray[np.uint8]
    user: Spans
    item: Spans
    event: Spans
    event_time: NDArray[np.int64]
    action: NDArray[np.uint8]
    user_hash: NDArray[np.uint64]
    item_hash: NDArray[np.uint64]
    event_hash: NDArray[np.uint64]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def user_ids(self) -> list[str]:
        """Str of each record's user; for N of many, use `texts` on the rows you need."""
        return self.texts(self.user, np.arange(len(self)))

    @cached_property
    def item_ids(self) -> list[str]:
        """Str of each record's item."""
        return self.texts(self.item, np.arange(len(self)))

    @cached_property
    def event_ids(self) -> list[str]:
        """Str of each record's event id."""
        return self.texts(self.event, np.arange(len(self)))

    def texts(self, spans: Spans, rows: NDArray[np.int64]) -> list[str]:
        """The strings of `spans` in the given rows."""
        raw = self.buffer.data
        starts = spans.start[rows].tolist()
        ends = (spans.start[rows] + spans.length[rows]).tolist()
        return [str(raw[a:b], "utf-8") for a, b in zip(starts, ends, strict=True)]

    def select(self, rows: NDArray[Any]) -> "Clicks":
        """The records at `rows` (indices or a mask), in that order."""
        return Clicks(
            buffer=self.buffer,
            user=self.user.at(rows),
            item=self.item.at(rows),
            event=self.event.at(rows),
            event_time=self.event_time[rows],
            action=self.action[rows],
            user_hash=self.user_hash[rows],
            item_hash=self.item_hash[rows],
            event_hash=self.event_hash[rows],
            positions=self.positions[rows],
        )


def decode_clicks(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    now_ms: int | NDArray[np.int64],
    schema_by_id: SchemaById | None = None,
) -> tuple[Clicks, list[BadRecord]]:
    """Decode a batch of Kafka values: every record becomes a row or a BadRecord. Raises only what schema_by_id raises.

    keys: the Kafka keys, which must equal user_id. now_ms: the time, to refuse events too far ahead; see `latest`.
    """
    groups, bad = _by_schema(values, schema_by_id)
    by_record = np.broadcast_to(np.asarray(now_ms, np.int64), len(values))
    parts = []
    for schema, body_start, positions in groups:
        part, part_bad = _decode_group(schema, body_start, positions, values, keys, by_record[positions])
        parts.append(part)
        bad.extend(part_bad)
    bad.sort(key=lambda record: record.position)
    return _joined(parts), bad


def latest(now_ms: int, produced_ms: Sequence[int]) -> NDArray[np.int64]:
    """The time by which each record is judged: our clock's, or when it was produced, whichever is later.

    So a clock of ours that is behind refuses nothing. How far a producer's may be ahead is the broker's to limit
    (message.timestamp.after.max.ms, an hour unless set otherwise).
    """
    return np.maximum(np.array(produced_ms, np.int64), now_ms)


def _by_schema(
    values: Sequence[bytes | None], schema_by_id: SchemaById | None
) -> tuple[list[tuple[Schema, int, list[int]]], list[BadRecord]]:
    """The records by their writer's schema: (schema, start of the body, positions); and those without a known one."""
    # Nearly always one producer version, and no record without a value: then one look-up serves the whole batch.
    first = values[0] if values else None
    if first and first[:2] == SINGLE_OBJECT and None not in values:
        whole = [value or b"" for value in values]
        if max(map(len, whole)) <= MAX_VALUE_BYTES and len({value[:HEADER_BYTES] for value in whole}) == 1:
            looked_up = writer_schema("click_event", first, 0)
            if not isinstance(looked_up, BadRecord):
                return [(*looked_up, list(range(len(values))))], []
    bad: list[BadRecord] = []
    groups: dict[int, tuple[Schema, int, list[int]]] = {}
    known: dict[bytes, tuple[Schema, int]] = {}
    for position, value in enumerate(values):
        head = b"" if value is None or len(value) > MAX_VALUE_BYTES else value[: _header_bytes(value)]
        found = known.get(head)
        if found is None:
            looked_up = writer_schema("click_event", value, position, schema_by_id)
            if isinstance(looked_up, BadRecord):
                bad.append(looked_up)
                continue
            found = known[head] = looked_up
        groups.setdefault(id(found[0]), (*found, []))[2].append(position)
    return list(groups.values()), bad


def _header_bytes(value: bytes) -> int:
    return CONFLUENT_HEADER_BYTES if value[:1] == CONFLUENT else HEADER_BYTES


def _decode_group(
    schema: Schema,
    body_start: int,
    positions: list[int],
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    now_ms: NDArray[np.int64],
) -> tuple[Clicks, list[BadRecord]]:
    where = np.array(positions, np.int64)
    own_keys = [keys[p] or b"" for p in positions]
    own_values = [values[p] or b"" for p in positions]
    try:
        if trouble := conflicts(schema, published("click_event").latest):
            raise ValueError(trouble[0])
        columns = decode_columns(own_values, body_start, schema, own_keys)
    except ValueError as error:
        detail = f"cannot be read as ClickEvent: {error}"[:200]
        return _joined([]), [BadRecord(p, "unknown-schema", detail) for p in positions]
    spans = [columns.spans[name] for name in _ID_FIELDS]
    event_time = columns.numbers["event_time"]
    action = _action_codes(columns, len(positions))
    checks = _Checks(len(positions))
    names = [f["name"] for f in schema["fields"]] + ["the end"]
    checks.refuse(columns.failed, "malformed", lambda i: f"breaks at {names[columns.failed_field[i]]}")
    for name in (*_ID_FIELDS, "event_time", "action"):
        # A writer may hold optional what we cannot do without.
        if name in columns.present and not (given := columns.present[name]).all():
            checks.refuse(~given, "malformed", lambda _, name=name: f"{name} is null")
    hashes, plain = _hashed(columns, [*spans, spans_of(own_keys, sum(map(len, own_values)))])
    event_hash, user_hash, item_hash, key_hash = hashes
    for name, span, usual in zip(_ID_FIELDS, spans, plain, strict=False):
        _check_id(checks, columns.buffer, name, span, ~usual)
    checks.refuse(
        user_hash != key_hash,
        "wrong-key",
        lambda i: f"key {shown(keys[positions[i]])} is not user_id",
    )
    checks.refuse(event_time < EARLIEST_MS, "too-old", lambda i: f"event_time {event_time[i]} is before 2000")
    checks.refuse(
        event_time > now_ms + MAX_AHEAD_MS,
        "future",
        lambda i: f"event_time {event_time[i]} is {(event_time[i] - now_ms[i]) / 1000:.0f} s ahead",
    )
    _check_numbers(checks, columns)
    event, user, item = spans
    clicks = Clicks(columns.buffer, user, item, event, event_time, action, user_hash, item_hash, event_hash, where)
    if not checks.good.all():
        clicks = clicks.select(checks.good)
    return clicks, [BadRecord(positions[i], reason, detail) for i, reason, detail in checks.refused]


def _hashed(columns: Columns, spans: Sequence[Spans]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Hashes uint64[S, N] and plainness bool[S, N] of S columns of strings.

    Nothing is hashed of failed records, nor of strings too long for an id: the walk takes a step for eight bytes, and
    one key of 1 MB would stop a whole micro-batch for a second.
    """
    start = np.concatenate([span.start for span in spans])
    length = np.concatenate([span.length for span in spans])
    if columns.failed.any():
        length = np.where(np.tile(columns.failed, len(spans)), 0, length)
    if length.max(initial=0) > MAX_ID_BYTES:
        length = np.where(length > MAX_ID_BYTES, 0, length)
    hashes, plain = hash_and_look(columns.buffer, start, length)
    return hashes.reshape(len(spans), -1), plain.reshape(len(spans), -1)


class _Checks:
    """Which records are still good, and the first reason against each that is not."""

    def __init__(self, count: int) -> None:
        self.good = np.ones(count, np.bool_)
        self.refused: list[tuple[int, str, str]] = []

    def refuse(self, broken: NDArray[np.bool_], reason: str, detail: Any) -> None:
        if not broken.any():
            return
        for i in np.flatnonzero(broken & self.good).tolist():
            self.refused.append((i, reason, detail(i)))
        self.good &= ~broken


def _check_id(checks: _Checks, buffer: NDArray[np.uint8], name: str, span: Spans, suspects: NDArray[np.bool_]) -> None:
    """Only ids that are not plain ASCII of a usual length are looked at one by one."""
    suspects = suspects & checks.good
    if not suspects.any():
        return
    trouble = {
        i: found
        for i in np.flatnonzero(suspects).tolist()
        if (found := id_trouble(buffer[span.start[i] : span.start[i] + span.length[i]].tobytes()))
    }
    broken = np.zeros_like(suspects)
    broken[list(trouble)] = True
    checks.refuse(broken, "bad-id", lambda i: f"{name} {trouble[i]}")


def _check_numbers(checks: _Checks, columns: Columns) -> None:
    if "value" in columns.numbers and (given := columns.present["value"]).any():
        value = columns.numbers["value"]
        checks.refuse(
            given & ~(np.isfinite(value) & (value >= 0)),
            "bad-number",
            lambda i: f"value is {value[i]}",
        )
    if "dwell_ms" in columns.numbers and (given := columns.present["dwell_ms"]).any():
        dwell = columns.numbers["dwell_ms"]
        checks.refuse(given & (dwell < 0), "bad-number", lambda i: f"dwell_ms is {dwell[i]}")


def _action_codes(columns: Columns, count: int) -> NDArray[np.uint8]:
    """The writer's enum codes as ours; a symbol we do not know yet, or no action at all, is the default."""
    default = ACTIONS.index(DEFAULT_ACTION)
    if "action" not in columns.symbols:
        return np.full(count, default, np.uint8)
    symbols = columns.symbols["action"]
    ours = np.array([ACTIONS.index(s) if s in ACTIONS else default for s in symbols], np.uint8)
    codes: NDArray[np.uint8] = ours[np.clip(columns.numbers["action"], 0, len(symbols) - 1)]
    return codes


def _joined(parts: list[Clicks]) -> Clicks:
    """One batch of the parts, in the order of their positions (one part a producer version)."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none, no_hash = np.zeros(0, np.int64), np.zeros(0, np.uint64)
        spans, no_action = Spans(none, none), np.zeros(0, np.uint8)
        return Clicks(_EMPTY, spans, spans, spans, none, no_action, no_hash, no_hash, no_hash, none)
    shifts = np.cumsum([0] + [len(part.buffer) for part in parts[:-1]])

    def spans_of(name: str) -> Spans:
        columns = [(getattr(part, name), shift) for part, shift in zip(parts, shifts, strict=True)]
        return Spans(
            np.concatenate([column.start + shift for column, shift in columns]),
            np.concatenate([column.length for column, _ in columns]),
        )

    joined = Clicks(
        buffer=np.concatenate([part.buffer for part in parts]),
        user=spans_of("user"),
        item=spans_of("item"),
        event=spans_of("event"),
        event_time=np.concatenate([part.event_time for part in parts]),
        action=np.concatenate([part.action for part in parts]),
        user_hash=np.concatenate([part.user_hash for part in parts]),
        item_hash=np.concatenate([part.item_hash for part in parts]),
        event_hash=np.concatenate([part.event_hash for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
    )
    return joined.select(np.argsort(joined.positions))
