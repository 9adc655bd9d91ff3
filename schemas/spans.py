"""Columns of decoded records: numbers as arrays, strings as places in the buffer in which all records lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

# More entries than this in one map or array are refused, in however many blocks: the walk is one step an entry, and a
# record of 64 KiB could hold 32 000 of them, which would stop a whole micro-batch for half a second.
MAX_ENTRIES = 256


@dataclass
class Spans:
    """A column of strings: where each lies in the batch's buffer. start, length: int64[N], bytes."""

    start: Ints
    length: Ints

    def at(self, rows: NDArray[Any]) -> "Spans":
        """The spans of some rows (indices or a mask)."""
        return Spans(self.start[rows], self.length[rows])


@dataclass
class Columns:
    """Decoded columns; where `failed` is set the values of that record mean nothing.

    failed: bool[N]. failed_field: int64[N], index into the writer's fields, len(fields) for bytes after the end.
    numbers: int64[N] or float64[N] by field name, with `present` bool[N] for optional fields.
    """

    buffer: NDArray[np.uint8]
    failed: Bools
    failed_field: Ints
    numbers: dict[str, NDArray[Any]]
    present: dict[str, Bools]
    spans: dict[str, Spans]
    symbols: dict[str, list[str]]


def spans_of(parts: Sequence[bytes], start: int = 0) -> Spans:
    """Where each of N parts lies when they are joined, the first one at `start`."""
    length = np.fromiter(map(len, parts), np.int64, len(parts))
    return Spans(np.cumsum(length) - length + start, length)


def only_branch(kinds: list[Any]) -> int:
    """The place of the one type beside null in a union. Raises ValueError for unions of more."""
    branches = [place for place, kind in enumerate(kinds) if kind != "null"]
    if len(branches) != 1:
        raise ValueError(f"only unions of null and one type are used by the project's records, not {kinds}")
    return branches[0]
