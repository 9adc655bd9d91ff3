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
# A gather of eight bytes may read past the last id: that much padding keeps it inside the buffer.
PADDING = b"\0" * 8
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
    result = _mix(length.astype(np.uint64) ^ _SEED)
    windows = np.lib.stride_tricks.sliding_window_view(buffer, 8)
    longest = int(length.max(initial=0))
    for offset in range(0, longest, 8):
        left = np.clip(length - offset, 0, 8)
        inside = left > 0
        words = windows[np.where(inside, start + offset, 0)].view("<u8")[:, 0] & _KEEP[left]
        result = np.where(inside, _mix(result ^ words), result)
    return np.where(result == 0, _SEED, result)


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> _SHIFT)) * _MULTIPLIER
    word = (word ^ (word >> _SHIFT)) * _MULTIPLIER
    return word ^ (word >> _SHIFT)
