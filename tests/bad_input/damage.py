"""Damage to good records, from a seed: what wires, disks and other people's programs do to bytes."""

import random
from collections.abc import Callable, Sequence

from tests.unit.schemas.wire import integer

# Numbers at which something gives way: lengths, counts, branches and codes are all such integers.
_NEAR = (0, 1, 8, 64, 128, 255, 256, 257, 8192, 65_536, 2**31, 2**32, 2**55, 2**56, 2**62, 2**63 - 1)
EDGES = (
    *(integer(number) for near in _NEAR for number in (near, -near, near - 1, -near - 1)),
    # In more bytes than need be, and in more than there may be.
    b"\x80\x00",
    b"\x80\x80\x80\x00",
    b"\xff" * 9 + b"\x01",
    b"\x80" * 9 + b"\x7f",
    b"\x80" * 10 + b"\x01",
)


def _flip(raw: bytearray, chance: random.Random) -> None:
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)


def _replace(raw: bytearray, chance: random.Random) -> None:
    raw[chance.randrange(len(raw))] = chance.choice((0, 1, 2, 0x7F, 0x80, 0x81, 0xFF, chance.randrange(256)))


def _cut(raw: bytearray, chance: random.Random) -> None:
    del raw[chance.randrange(len(raw)) :]


def _drop(raw: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(raw))
    del raw[at : at + chance.randrange(1, 9)]


def _insert(raw: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(raw) + 1)
    raw[at:at] = chance.choice((chance.randbytes(chance.randrange(1, 9)), chance.choice(EDGES)))


def _edge(raw: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(raw))
    raw[at : at + 1] = chance.choice(EDGES)


def _repeat(raw: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(raw))
    raw[at:at] = raw[at : at + chance.randrange(1, 40)] * chance.randrange(1, 20)


_WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (_flip, _replace, _cut, _drop, _insert, _edge, _repeat)


def damaged(goods: Sequence[bytes], chance: random.Random, keep: int = 0) -> bytes:
    """One of `goods` with one to three things done to it behind its first `keep` bytes."""
    good = chance.choice(goods)
    raw = bytearray(good[keep:])
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if raw:
            chance.choice(_WAYS)(raw, chance)
    if chance.random() < 0.1:  # two records that ran into each other
        other = chance.choice(goods)[keep:]
        raw[chance.randrange(len(raw) + 1) :] = other[chance.randrange(len(other)) :]
    return good[:keep] + bytes(raw)
