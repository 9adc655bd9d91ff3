"""Decoding a batch of Avro records into columns, with numpy and without a loop over the records.

All bodies of a batch lie in one byte buffer. One cursor per record walks through the writer's schema, field by
field, all records at once: first the quick way (quick.py), and where that finds anything amiss the careful way of
this file. Here a cursor that would pass its record's end stops and names the field, so that a damaged record never
harms its neighbours.

Shapes: N records; every array is [N] unless said otherwise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.avro import Schema
from schemas.ids import PADDING
from schemas.quick import quick_columns
from schemas.spans import MAX_ENTRIES, Bools, Columns, Ints, Spans, only_branch, spans_of

# A 64-bit zigzag integer has at most ten bytes of seven bits; of the tenth one bit is left.
_VARINT_BYTES = 10
_LAST_SHIFT = 63


class _Cursor:
    """One position per record, and which records are still sound."""

    def __init__(self, buffer: NDArray[np.uint8], at: Ints, end: Ints) -> None:
        self.buffer = buffer
        self.at = at
        self.end = end
        self.sound = np.ones(len(at), np.bool_)

    def fail(self, broken: Bools) -> None:
        self.sound &= ~broken

    def varint(self, rows: Bools) -> Ints:
        """Read one zigzag integer in the chosen rows; 0 elsewhere."""
        raw = np.zeros(len(self.at), np.uint64)
        more = rows & self.sound
        for shift in range(0, 7 * _VARINT_BYTES, 7):
            self.fail(more & (self.at >= self.end))
            more &= self.sound
            byte = self.buffer[np.where(more, self.at, 0)]
            raw |= np.where(more, (byte & 0x7F).astype(np.uint64) << np.uint64(shift), np.uint64(0))
            self.at += more
            if shift == _LAST_SHIFT:
                self.fail(more & (byte > 1))
            more &= byte >= 0x80
            if not more.any():
                break
        self.fail(more)
        return (raw >> np.uint64(1)).view(np.int64) ^ -(raw & np.uint64(1)).view(np.int64)

    def span(self, rows: Bools) -> Spans:
        """Step over length-prefixed bytes in the chosen rows."""
        length = self.varint(rows)
        # The comparison is written so that a huge length cannot overflow.
        self.fail(rows & ((length < 0) | (length > self.end - self.at)))
        length = np.where(rows & self.sound, length, 0)
        start = self.at.copy()
        self.at += length
        return Spans(start, length)

    def fixed(self, size: int, rows: Bools) -> Ints:
        """Step over `size` bytes in the chosen rows; returns where they start (0 elsewhere)."""
        self.fail(rows & (self.end - self.at < size))
        read = rows & self.sound
        start = np.where(read, self.at, 0)
        self.at += read * size
        return start


def decode_columns(values: Sequence[bytes], body_start: int, schema: Schema, beside: Sequence[bytes] = ()) -> Columns:
    """Decode N framed records written with `schema`, whose bodies start `body_start` bytes into each value.

    beside: other bytes to lie in the same buffer, right behind the values.
    Raises ValueError for a schema with types beyond those of the project's records.
    """
    buffer = np.frombuffer(b"".join([*values, *beside, PADDING]), np.uint8)
    whole = spans_of(values)
    at, end = whole.start + body_start, whole.start + whole.length
    found = quick_columns(buffer, at.copy(), end, schema) if len(values) else None
    return _careful_columns(buffer, at, end, schema) if found is None else found


def _careful_columns(buffer: NDArray[np.uint8], at: Ints, end: Ints, schema: Schema) -> Columns:
    cursor = _Cursor(buffer, at, end)
    fields, count = schema["fields"], len(at)
    out = Columns(buffer, np.zeros(count, np.bool_), np.full(count, -1, np.int64), {}, {}, {}, {})
    for index, field in enumerate(fields):
        _read(cursor, field["type"], np.ones(count, np.bool_), field["name"], out)
        out.failed_field[~cursor.sound & (out.failed_field < 0)] = index
    cursor.fail(cursor.at != cursor.end)
    out.failed_field[~cursor.sound & (out.failed_field < 0)] = len(fields)
    out.failed = ~cursor.sound
    return out


def _read(cursor: _Cursor, kind: Any, rows: Bools, name: str | None, out: Columns) -> None:
    """Read one value of type `kind` in the chosen rows; keep it as column `name`, or drop it without a name."""
    if isinstance(kind, list):
        _read_union(cursor, kind, rows, name, out)
        return
    word = kind["type"] if isinstance(kind, dict) else kind
    if word in ("int", "long"):
        _keep(out, name, rows, cursor.varint(rows))
    elif word == "enum":
        code = cursor.varint(rows)
        cursor.fail(rows & ((code < 0) | (code >= len(kind["symbols"]))))
        _keep(out, name, rows, code)
        if name is not None:
            out.symbols[name] = kind["symbols"]
    elif word in ("string", "bytes"):
        spans = cursor.span(rows)
        if name is not None:
            out.spans[name] = spans
            out.present[name] = rows
    elif word in ("float", "double"):
        size = 4 if word == "float" else 8
        window = np.lib.stride_tricks.sliding_window_view(cursor.buffer, size)
        number = window[cursor.fixed(size, rows)].view(f"<f{size}")[:, 0]
        _keep(out, name, rows, number.astype(np.float64))
    elif word == "boolean":
        byte = cursor.buffer[cursor.fixed(1, rows)]
        cursor.fail(rows & (byte > 1))
        _keep(out, name, rows, byte.astype(np.int64))
    elif word == "null":
        return
    elif word in ("map", "array"):
        _skip_blocks(cursor, kind, rows)
    else:
        raise ValueError(f"Avro type {word!r} is not used by the project's records")


def _keep(out: Columns, name: str | None, rows: Bools, number: NDArray[Any]) -> None:
    if name is not None:
        out.numbers[name] = number
        out.present[name] = rows


def _read_union(cursor: _Cursor, kinds: list[Any], rows: Bools, name: str | None, out: Columns) -> None:
    value = only_branch(kinds)
    branch = cursor.varint(rows)
    cursor.fail(rows & ((branch < 0) | (branch >= len(kinds))))
    chosen = rows & cursor.sound & (branch == value)
    _read(cursor, kinds[value], chosen, name, out)


def _skip_blocks(cursor: _Cursor, kind: Any, rows: Bools) -> None:
    """Step over a map or an array: blocks of entries, each with its count, ended by a count of 0."""
    open_rows = rows & cursor.sound
    total = np.zeros(len(rows), np.int64)
    # A block has an entry at least, so there are no more blocks than entries.
    for _ in range(MAX_ENTRIES + 1):
        count = cursor.varint(open_rows)
        # A negative count is followed by the block's size in bytes, for readers that skip.
        cursor.varint(open_rows & (count < 0))
        left = np.abs(count)
        cursor.fail(open_rows & ((left > MAX_ENTRIES) | (left < 0)))
        total += np.where(open_rows & cursor.sound, left, 0)
        cursor.fail(open_rows & (total > MAX_ENTRIES))
        open_rows = open_rows & cursor.sound & (count != 0)
        if not open_rows.any():
            return
        for step in range(int(left[open_rows].max())):
            entry = open_rows & cursor.sound & (step < left)
            if kind["type"] == "map":
                cursor.span(entry)
                _read(
                    cursor,
                    kind["values"],
                    entry,
                    None,
                    Columns(cursor.buffer, entry, left, {}, {}, {}, {}),
                )
            else:
                _read(
                    cursor,
                    kind["items"],
                    entry,
                    None,
                    Columns(cursor.buffer, entry, left, {}, {}, {}, {}),
                )
        open_rows &= cursor.sound
    cursor.fail(open_rows)
