"""Stable 64-bit hashes of ids, computed for a whole batch at once.

State keeps items and events by these hashes: a model's own item index changes with every release,
the hash of an id never does. The function is part of the state's layout and must not change.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import Address, Compiled, carray, inlined
from schemas.ids import MAX_ID_BYTES

# Odd 64-bit constants with about half their bits set; any such pair mixes well.
_SEED = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
# Printable ASCII lies from the one to below the other.
_SPACE, _DELETE = 0x20, 0x7F


def hash_ids(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Hash N ids (their UTF-8 bytes) to uint64[N]; never 0, which marks an empty slot."""
    encoded = [text.encode() for text in ids]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    buffer = np.frombuffer(b"".join(encoded), np.uint8)
    return hash_spans(buffer, np.cumsum(lengths) - lengths, lengths)


def hash_spans(buffer: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash the byte spans `buffer[start:start+length]`.

    start, length: int64[N], in bytes. Returns uint64[N], never 0.
    """
    return hash_and_look(buffer, start, length)[0]


def hash_and_look(
    buffer: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """`hash_spans`, and which spans are plain, bool[N]: printable ASCII of 1 to MAX_ID_BYTES bytes."""
    hashes, plain = np.empty(len(start), np.uint64), np.empty(len(start), np.bool_)
    _hash(buffer, len(buffer), np.ascontiguousarray(start), np.ascontiguousarray(length), len(start), hashes, plain)
    return hashes, plain


@inlined
def _mix(word: np.uint64) -> np.uint64:
    word = (word ^ (word >> _SHIFT)) * _MULTIPLIER
    word = (word ^ (word >> _SHIFT)) * _MULTIPLIER
    return word ^ (word >> _SHIFT)


@Compiled
def _hash(
    buffer_at: Address,
    size: int,
    start_at: Address,
    length_at: Address,
    count: int,
    hashes_at: Address,
    plain_at: Address,
) -> None:
    buffer = carray(buffer_at, size, np.uint8)
    starts, lengths = carray(start_at, count, np.int64), carray(length_at, count, np.int64)
    hashes, plain = carray(hashes_at, count, np.uint64), carray(plain_at, count, np.bool_)
    for span in range(count):
        start, length = starts[span], lengths[span]
        result = _mix(np.uint64(length) ^ _SEED)
        usual = 0 < length <= MAX_ID_BYTES
        # Eight bytes at a time, little-endian, the last ones filled up with zeros.
        for offset in range(0, length, 8):
            word = np.uint64(0)
            for place in range(min(8, length - offset)):
                byte = buffer[start + offset + place]
                usual &= _SPACE <= byte < _DELETE
                word |= np.uint64(byte) << np.uint64(8 * place)
            result = _mix(result ^ word)
        hashes[span] = result if result != 0 else _SEED
        plain[span] = usual


def distinct(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of N keys the D distinct ones: where each comes first, int64[D]; and which of them each key is, int64[N]."""
    count = len(keys)
    first, which = np.empty((2, count), np.int64)
    # A table with room for twice as many: few keys meet where they belong.
    table = np.full(1 << max(1, 2 * count - 1).bit_length(), -1, np.int64)
    found = np.zeros(1, np.int64)
    _number(np.ascontiguousarray(keys), count, table, len(table), first, which, found)
    return first[: found[0]], which


@Compiled
def _number(
    keys_at: Address, count: int, table_at: Address, room: int, first_at: Address, which_at: Address, found_at: Address
) -> None:
    keys, table = carray(keys_at, count, np.uint64), carray(table_at, room, np.int64)
    first, which = carray(first_at, count, np.int64), carray(which_at, count, np.int64)
    found = 0
    for place in range(count):
        at = np.int64(_mix(keys[place]) & np.uint64(room - 1))
        while table[at] >= 0 and keys[first[table[at]]] != keys[place]:
            at = (at + 1) & (room - 1)
        if table[at] < 0:
            table[at], first[found] = found, place
            found += 1
        which[place] = table[at]
    carray(found_at, 1, np.int64)[0] = found
