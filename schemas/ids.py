"""Stable 64-bit hashes of ids, computed for a whole batch at once.

State keeps items and events by these hashes: a model's own item index changes with every release,
the hash of an id never does. The function is part of the state's layout and must not change.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Odd 64-bit constants with about half their bits set; any such pair mixes well.
_SEED = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
# Ids are keys in state, in Cassandra and in Kafka; longer ones are a sign of a payload in the wrong field.
MAX_ID_BYTES = 256
_SHOWN_BYTES = 40
# A gather of eight bytes may read past the last id: that much padding keeps it inside the buffer.
PADDING = b"\0" * 8
# The same byte eight times: 1, the top bit, a space, DEL.
_EACH, _TOPS, _SPACES, _DELETES = (np.uint64(byte * 0x0101_0101_0101_0101) for byte in (0x01, 0x80, 0x20, 0x7F))
# _KEEP[n] keeps the first n bytes of a little-endian word.
_KEEP = np.array([(1 << (8 * n)) - 1 for n in range(8)] + [2**64 - 1], dtype=np.uint64)


def id_trouble(raw: bytes) -> str | None:
    """Why bytes are no id, or None when they are one: 1 to MAX_ID_BYTES of UTF-8 without control characters."""
    if not 0 < len(raw) <= MAX_ID_BYTES:
        return f"has {len(raw)} bytes; 1 to {MAX_ID_BYTES} are allowed"
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    # Category Cc: line feeds and their kin would break lists of ids, and what prints them.
    return "has control characters" if any(unicodedata.category(c) == "Cc" for c in text) else None


def shown(key: bytes | None) -> str:
    """A key for a message: its beginning, where it is none that anybody would read."""
    return repr(key) if key is None or len(key) <= _SHOWN_BYTES else f"{key[:_SHOWN_BYTES]!r}… of {len(key)} bytes"


def hash_ids(ids: Sequence[str]) -> NDArray[np.uint64]:
    """Hash N ids (their UTF-8 bytes) to uint64[N]; never 0, which marks an empty slot."""
    encoded = [text.encode() for text in ids]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    buffer = np.frombuffer(b"".join(encoded) + PADDING, np.uint8)
    return hash_spans(buffer, np.cumsum(lengths) - lengths, lengths)


def hash_spans(buffer: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash the byte spans `buffer[start:start+length]`; the buffer ends with PADDING.

    start, length: int64[N], in bytes. Returns uint64[N], never 0.
    """
    return hash_and_look(buffer, start, length)[0]


def hash_and_look(
    buffer: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """`hash_spans`, and which spans are plain, bool[N]: printable ASCII of 1 to MAX_ID_BYTES bytes."""
    result = _mix(length.astype(np.uint64) ^ _SEED)
    unusual = np.zeros(len(length), np.uint64)
    words = words_of(buffer)
    rows: NDArray[np.int64] | slice = slice(None)
    for offset in range(0, int(length.max(initial=0)), 8):
        left = length - offset
        if left.min() <= 0:
            rows = np.flatnonzero(left > 0)
        keep = _KEEP[np.minimum(left[rows], 8)]
        word = words[start[rows] + offset] & keep
        result[rows] = _mix(result[rows] ^ word)
        if offset < MAX_ID_BYTES:
            unusual[rows] |= _unusual(word | (_SPACES & ~keep))
    plain = (unusual == 0) & (length > 0) & (length <= MAX_ID_BYTES)
    return np.where(result == 0, _SEED, result), plain


def words_of(buffer: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The eight bytes from every place of a buffer on, little-endian: a view."""
    return np.ndarray((max(0, len(buffer) - 7),), "<u8", buffer=buffer.data, strides=(1,))


def _unusual(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Not 0 where one of the eight bytes is below a space, DEL, or beyond ASCII."""
    below = (word - _SPACES) & ~word
    delete = word ^ _DELETES
    return (word | below | ((delete - _EACH) & ~delete)) & _TOPS


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> _SHIFT)) * _MULTIPLIER
    word = (word ^ (word >> _SHIFT)) * _MULTIPLIER
    return word ^ (word >> _SHIFT)
