"""Rows as Cassandra's protocol carries them: bytes joined for a whole micro-batch, no object per value.

A value is its length and then its bytes, a frozen list the number of its elements and then each as a value, all
numbers big-endian; a statement's values are their number and then each. Item ids come as parts that were prepared
once per item, so that a row costs some microseconds.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.recommendation import COLUMNS

_LENGTH = struct.Struct(">i")
# The number of a statement's values, and of an insert's: key, COLUMNS, ttl, write time.
_COUNT = struct.Struct(">h")
_INSERT_COUNT = _COUNT.pack(len(COLUMNS) + 3)
_DELETE = struct.Struct(">hiq")
# Which value of an insert, and of a delete, is the key.
INSERT_KEY, DELETE_KEY = 0, 1
# One float of a list: its size in bytes, then its value.
_ELEMENT = np.dtype([("size", ">i4"), ("value", ">f4")])
# What a row ends with, each value after its length.
_TIMES = np.dtype(
    [
        ("event_length", ">i4"),
        ("event_time", ">i8"),
        ("scored_length", ">i4"),
        ("scored_at", ">i8"),
        ("ttl_length", ">i4"),
        ("ttl", ">i4"),
        ("write_length", ">i4"),
        ("write_time", ">i8"),
    ]
)


class Lists(NamedTuple):
    """Lists of U users. item_ids, scores: wire form. source, version: of each user."""

    item_ids: list[bytes]
    scores: list[bytes]
    source: list[str]
    version: list[str]


def wire_value(raw: bytes) -> bytes:
    """Bytes as a value, or as an element of a list."""
    return _LENGTH.pack(len(raw)) + raw


def wire_list(parts: list[bytes]) -> bytes:
    """A frozen list of elements that carry their length already."""
    return _LENGTH.pack(len(parts)) + b"".join(parts)


def wire_floats(values: NDArray[np.float32]) -> list[bytes]:
    """A frozen list of floats for each row of float32[U, K]."""
    count, length = values.shape
    kept = np.dtype([("count", ">i4"), ("elements", _ELEMENT, (length,))])
    rows = np.empty(count, kept)
    rows["count"] = length
    rows["elements"]["size"] = 4
    rows["elements"]["value"] = values
    return _cut(rows)


def insert_values(
    keys: Sequence[str],
    lists: Lists,
    event_time: NDArray[np.int64],
    scored_at: int,
    ttl: int,
    write_time: NDArray[np.int64],
) -> list[bytes]:
    """The values of U inserts. event_time int64[U], scored_at: ms; ttl: s; write_time int64[U]: µs."""
    times = np.empty(len(keys), _TIMES)
    times["event_length"] = times["scored_length"] = times["write_length"] = 8
    times["ttl_length"] = 4
    times["event_time"], times["scored_at"], times["ttl"], times["write_time"] = event_time, scored_at, ttl, write_time
    pack = _LENGTH.pack
    ends = {
        (source, version): wire_value(source.encode()) + wire_value(version.encode())
        for source, version in set(zip(lists.source, lists.version, strict=True))
    }
    return [
        b"".join((_INSERT_COUNT, pack(len(key)), key, pack(len(ids)), ids, pack(len(scores)), scores, ends[end], time))
        for key, ids, scores, end, time in zip(
            map(str.encode, keys),
            lists.item_ids,
            lists.scores,
            zip(lists.source, lists.version, strict=True),
            _cut(times),
            strict=True,
        )
    ]


def delete_values(key: str, write_time: int) -> bytes:
    """The values of a delete: write time in µs, key."""
    return _DELETE.pack(2, 8, write_time) + wire_value(key.encode())


def split_values(values: bytes) -> list[bytes]:
    """A statement's values, each by itself."""
    (count,), place = _COUNT.unpack_from(values), _COUNT.size
    found = []
    for _ in range(count):
        (length,) = _LENGTH.unpack_from(values, place)
        place += _LENGTH.size + length
        found.append(values[place - length : place])
    return found


def value_at(values: bytes, index: int) -> bytes:
    """One of a statement's values: INSERT_KEY or DELETE_KEY of it is the row's key."""
    place = _COUNT.size
    for _ in range(index):
        place += _LENGTH.size + _LENGTH.unpack_from(values, place)[0]
    (length,) = _LENGTH.unpack_from(values, place)
    return values[place + _LENGTH.size : place + _LENGTH.size + length]


def _cut(rows: NDArray[np.void]) -> list[bytes]:
    raw, size = rows.tobytes(), rows.dtype.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]
