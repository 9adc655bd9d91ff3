"""The quick way through a batch of Avro records: all records at once, with hardly a check on the way.

The cursors only ever go forward, by lengths that are checked to be small and not negative. So when at the end every
cursor stands exactly at its record's end, none was outside its record before; when one does not, nothing that was
read counts, and the careful way (columns.py) finds out which records are broken, and where.

Shapes: N records; every array is [N] unless said otherwise.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.avro import MAX_VALUE_BYTES, Schema
from schemas.ids import words_of
from schemas.spans import MAX_ENTRIES, Columns, Ints, Spans, only_branch

_STOPS = np.uint64(0x8080_8080_8080_8080)
# A varint's groups of seven bits move together in three steps: which bits stay, which move, and how far.
_STEPS = [
    (np.uint64(stay), np.uint64(move), np.uint64(shift))
    for stay, move, shift in (
        (0x007F_007F_007F_007F, 0x7F00_7F00_7F00_7F00, 1),
        (0x0000_3FFF_0000_3FFF, 0x3FFF_0000_3FFF_0000, 2),
        (0x0000_0000_0FFF_FFFF, 0x0FFF_FFFF_0000_0000, 4),
    )
]
_ONE = np.uint64(1)


class _NotPlainError(Exception):
    """Something is broken, or so unusual that the careful way has to look at it."""


class _Cursors:
    """One position per record; those of some records alone are cursors of their own."""

    def __init__(self, buffer: NDArray[np.uint8], words: NDArray[np.uint64], at: Ints) -> None:
        self.buffer = buffer
        self.words = words
        self.at = at

    def of(self, rows: Ints) -> "_Cursors":
        return _Cursors(self.buffer, self.words, self.at[rows])

    def varint(self) -> Ints:
        """One zigzag integer of each record, of eight bytes at most."""
        byte = self.buffer[self.at]
        if byte.max() < 0x80:
            self.at = self.at + 1
            raw = byte.astype(np.int64)
            return (raw >> 1) ^ -(raw & 1)
        word = self.words[self.at]
        stops = ~word & _STOPS
        if not stops.all():
            raise _NotPlainError
        # The bits below the first stop bit are the number's.
        below = (stops & (~stops + _ONE)) - _ONE
        self.at = self.at + ((np.bitwise_count(below).astype(np.int64) + 1) >> 3)
        word = word & below & ~_STOPS
        for stay, move, shift in _STEPS:
            word = (word & stay) | ((word & move) >> shift)
        return (word >> _ONE).view(np.int64) ^ -(word & _ONE).view(np.int64)

    def count(self, limit: int) -> Ints:
        """A number from 0 to `limit`."""
        number = self.varint()
        if number.view(np.uint64).max() > limit:
            raise _NotPlainError
        return number

    def span(self) -> Spans:
        """Step over length-prefixed bytes."""
        length = self.count(MAX_VALUE_BYTES)
        start = self.at
        self.at = start + length
        return Spans(start, length)

    def fixed(self, size: int) -> NDArray[np.uint64]:
        """Step over `size` bytes, eight at most; returns the eight that begin there."""
        word = self.words[self.at]
        self.at = self.at + size
        return word


def quick_columns(buffer: NDArray[np.uint8], at: Ints, end: Ints, schema: Schema) -> Columns | None:
    """Columns of N records whose bodies lie from `at` to `end`; None where the careful way must be taken."""
    none = np.zeros(len(at), np.bool_)
    out = Columns(buffer, none, np.full(len(at), -1, np.int64), {}, {}, {}, {})
    cursors = _Cursors(buffer, words_of(buffer), at)
    try:
        for field in schema["fields"]:
            _read(cursors, field["type"], field["name"], out)
    except (_NotPlainError, IndexError):  # the last cursors may run out of the buffer
        return None
    return out if np.array_equal(cursors.at, end) else None


def _read(cursors: _Cursors, kind: Any, name: str, out: Columns) -> None:
    """Read one value of type `kind` of every record as column `name`."""
    count = len(cursors.at)
    if isinstance(kind, list):
        _read_union(cursors, kind, name, out)
        return
    word = kind["type"] if isinstance(kind, dict) else kind
    out.present[name] = np.ones(count, np.bool_)
    if word in ("int", "long"):
        out.numbers[name] = cursors.varint()
    elif word == "enum":
        out.numbers[name] = cursors.count(len(kind["symbols"]) - 1)
        out.symbols[name] = kind["symbols"]
    elif word in ("string", "bytes"):
        out.spans[name] = cursors.span()
    elif word == "double":
        out.numbers[name] = cursors.fixed(8).view(np.float64)
    elif word == "map":
        _skip_map(cursors, kind["values"])
    else:
        raise _NotPlainError


def _read_union(cursors: _Cursors, kinds: list[Any], name: str, out: Columns) -> None:
    """Read the values of the records that have one; 0 and nothing elsewhere."""
    value = only_branch(kinds)
    branch = cursors.count(len(kinds) - 1)
    chosen = branch == value
    count = len(branch)
    rows = np.flatnonzero(chosen)
    if len(rows) == count:
        _read(cursors, kinds[value], name, out)
        return
    some = Columns(out.buffer, out.failed, out.failed_field, {}, {}, {}, {})
    if len(rows):
        inner = cursors.of(rows)
        _read(inner, kinds[value], name, some)
        cursors.at[rows] = inner.at
    out.present[name] = chosen
    out.symbols.update(some.symbols)
    if name in some.spans or kinds[value] in ("string", "bytes"):
        start, length = np.zeros(count, np.int64), np.zeros(count, np.int64)
        if len(rows):
            start[rows], length[rows] = some.spans[name].start, some.spans[name].length
        out.spans[name] = Spans(start, length)
    else:
        values = np.zeros(count, np.float64 if kinds[value] == "double" else np.int64)
        if len(rows):
            values[rows] = some.numbers[name]
        out.numbers[name] = values


def _skip_map(cursors: _Cursors, kind: Any) -> None:
    """Step over maps of strings: blocks of entries, each with its count, ended by a count of 0."""
    if kind != "string":
        raise _NotPlainError
    left = cursors.count(MAX_ENTRIES)
    total = left.copy()
    while len(rows := np.flatnonzero(left)):
        inner = cursors.of(rows)
        inner.span()
        inner.span()
        left[rows] -= 1
        done = np.flatnonzero(left[rows] == 0)
        if len(done):
            after = inner.of(done)
            left[rows[done]] = after.count(MAX_ENTRIES)
            total[rows[done]] += left[rows[done]]
            if total.max() > MAX_ENTRIES:
                raise _NotPlainError
            inner.at[done] = after.at
        cursors.at[rows] = inner.at
