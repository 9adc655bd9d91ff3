"""Items, erasures, releases and dead letters come back as sent; what is wrong with one is said."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.avro import BadRecord
from schemas.dead_letter import KEPT_BYTES, DeadLetter, bury, decode_dead_letter, encode_dead_letter
from schemas.erasure import decode_erasure, encode_erasure
from schemas.item import Item, decode_item, encode_item
from schemas.release import ModelRelease, decode_release, encode_release

TEXT = st.text(max_size=20)
ID = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
LONG = st.integers(-(2**63), 2**63 - 1)
ITEM = st.builds(
    Item,
    item_id=ID,
    title=st.none() | TEXT,
    categories=st.lists(TEXT, max_size=4),
    price=st.none() | st.floats(0, allow_infinity=False),
    available=st.booleans(),
    published_at=st.none() | LONG,
    attributes=st.dictionaries(TEXT, TEXT, max_size=4),
)
RELEASE = st.builds(
    ModelRelease,
    version=ID,
    uri=TEXT,
    manifest_sha256=TEXT,
    published_at=LONG,
    stage=st.sampled_from(("shadow", "canary", "full")),
    percent=st.integers(0, 100),
    signature=st.none() | st.binary(max_size=64),
    sequence=LONG,
    expires_at=LONG,
)


def reason(verdict: object) -> str:
    assert isinstance(verdict, BadRecord)
    assert verdict.position == 7
    return verdict.reason


@given(ITEM)
def test_an_item_comes_back(item: Item) -> None:
    assert decode_item(encode_item(item), item.item_id.encode()) == item


def test_an_item_needs_no_more_than_its_id() -> None:
    item = decode_item(encode_item(Item("a")), b"a")
    assert item == Item("a", None, [], None, True, None, {})


def test_a_null_value_says_the_item_is_gone() -> None:
    assert decode_item(None, "商品".encode()) == Item("商品", available=False)


@given(ID, st.none() | LONG)
def test_an_erasure_names_its_user(user: str, requested_at: int | None) -> None:
    assert decode_erasure(encode_erasure(user, requested_at), user.encode()) == user
    assert decode_erasure(None, user.encode()) == user


@given(RELEASE)
def test_a_release_comes_back(release: ModelRelease) -> None:
    assert decode_release(encode_release(release)) == release


def test_a_release_is_for_all_users_unless_it_says_otherwise() -> None:
    release = decode_release(encode_release(ModelRelease("v", "u", "d", 1)))
    assert isinstance(release, ModelRelease)
    assert (release.stage, release.percent, release.signature) == ("full", 100, None)


def test_a_stage_that_is_none_is_not_encoded() -> None:
    with pytest.raises((ValueError, TypeError)):
        encode_release(ModelRelease("v", "u", "d", 1, stage="beta"))  # type: ignore[arg-type]


def buried(value: bytes | None, key: bytes | None = b"user-1") -> DeadLetter:
    return bury(value, key, ("clicks", 3, 99), "malformed", "breaks at item_id", 1000, "0.1.0")


@given(st.none() | st.binary(max_size=50), st.none() | st.binary(max_size=10))
def test_a_dead_letter_brings_back_the_original_bytes(value: bytes | None, key: bytes | None) -> None:
    letter = decode_dead_letter(encode_dead_letter(buried(value, key)))
    expected: dict[str, Any] = {
        "value": value,
        "value_size": len(value or b""),
        "value_sha256": None,
        "key": key,
        "topic": "clicks",
        "partition": 3,
        "offset": 99,
        "reason": "malformed",
        "detail": "breaks at item_id",
        "first_seen": 1000,
        "job_version": "0.1.0",
    }
    assert letter == DeadLetter(**expected)


def test_a_long_value_is_kept_as_its_first_4_kib_and_its_digest() -> None:
    whole = bytes(range(256)) * 400
    letter = decode_dead_letter(encode_dead_letter(buried(whole)))
    assert isinstance(letter, DeadLetter)
    assert letter.value == whole[:4096]
    assert letter.value_size == 102_400
    assert letter.value_sha256 == hashlib.sha256(whole).hexdigest()


def test_a_value_of_exactly_4_kib_is_kept_whole() -> None:
    letter = buried(bytes(KEPT_BYTES))
    assert (letter.value, letter.value_size, letter.value_sha256) == (bytes(4096), 4096, None)
    longer = buried(bytes(KEPT_BYTES + 1))
    assert (longer.value, longer.value_size) == (bytes(4096), 4097)
    assert longer.value_sha256 == hashlib.sha256(bytes(4097)).hexdigest()


def test_a_dead_letter_that_is_none_does_not_raise() -> None:
    assert reason(decode_dead_letter(b"{}", 7)) == "unknown-framing"
