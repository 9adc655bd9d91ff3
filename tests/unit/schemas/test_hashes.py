"""The hash of an id is part of the state's layout: its values are written down here for good."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.hashes import distinct, hash_ids, hash_spans

MASK = 2**64 - 1
SEED = 0x9E3779B97F4A7C15


def mix(word: int) -> int:
    for _ in range(2):
        word = (word ^ word >> 32) * 0xD6E8FEB86659FD93 & MASK
    return word ^ word >> 32


def plain_hash(raw: bytes) -> int:
    """The same function, one word at a time."""
    result = mix(len(raw) ^ SEED)
    for at in range(0, len(raw), 8):
        result = mix(result ^ int.from_bytes(raw[at : at + 8], "little"))
    return result or SEED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0x4E17CF67001B3979),
        ("a", 0x839E6325CFF62B54),
        ("ab", 0x940586A089696236),
        ("abcdefg", 0x95CE984ECB130CB3),
        ("abcdefgh", 0xB168E6126F08F5E8),
        ("abcdefghi", 0xE280669143E3A38D),
        ("0123456789abcdef", 0x7C51CAB481B72F84),
        ("0123456789abcdefghij", 0x4F8CEB1B088DC11C),
        ("user-1", 0x88F0A55A4269AF5D),
        ("item-42", 0x92CB0F16630D5AC5),
        ("Zoë", 0x26B6375B0AFD75D5),
        ("商品", 0x3DEAFD4E9989EDAF),
        ("🛒", 0xA2DE8A2548A0E02E),
    ],
)
def test_the_hash_of_an_id_never_changes(text: str, expected: int) -> None:
    assert int(hash_ids([text])[0]) == expected


@given(st.lists(st.text(max_size=40)))
def test_a_batch_hashes_like_its_members_one_by_one(ids: list[str]) -> None:
    assert hash_ids(ids).tolist() == [plain_hash(text.encode()) for text in ids]


def test_every_length_has_its_own_hash_even_of_equal_bytes() -> None:
    ids = ["\0" * n for n in range(21)] + ["x" * n for n in range(1, 21)]
    hashes = hash_ids(ids)
    assert len(set(hashes.tolist())) == len(ids)
    assert hashes.tolist() == [plain_hash(text.encode()) for text in ids]


def test_no_id_hashes_to_the_mark_of_an_empty_place() -> None:
    # The one id of eight bytes whose mixing would end at 0.
    raw = mix(8 ^ SEED).to_bytes(8, "little")
    one = hash_spans(np.frombuffer(raw, np.uint8), np.array([0]), np.array([8]))
    assert one.tolist() == [SEED]


@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8))
def test_a_span_of_a_buffer_hashes_like_its_bytes_alone(raw: bytes, ends: list[tuple[int, int]]) -> None:
    pairs = [sorted((min(a, len(raw)), min(b, len(raw)))) for a, b in ends]
    start = np.array([a for a, _ in pairs], np.int64)
    length = np.array([b - a for a, b in pairs], np.int64)
    hashes = hash_spans(np.frombuffer(raw, np.uint8), start, length)
    assert hashes.tolist() == [plain_hash(raw[a:b]) for a, b in pairs]


def test_no_ids_have_no_hashes() -> None:
    assert hash_ids([]).shape == (0,)
    assert hash_ids([]).dtype == np.uint64


@given(st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=200))
def test_distinct_keys_are_numbered_as_they_come(keys: list[int]) -> None:
    first, which = distinct(np.array(keys, np.uint64))
    assert [keys[place] for place in first.tolist()] == list(dict.fromkeys(keys))
    assert all(first[number] <= place for place, number in enumerate(which.tolist()))
    assert [keys[first[number]] for number in which.tolist()] == keys
