"""Any bytes at any decoder: the verdict is that of plain Python, nothing raises, nothing takes long.

    pytest tests/bad_input/test_fuzz.py                               the same some hundred thousand records everywhere
    pytest tests/bad_input/test_fuzz.py --hypothesis-profile=long     ever new ones, thirty times as many

A record that was decided wrongly is printed as hex; it belongs into FOUND, with a name, before the decoder is mended.
"""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.avro import BadRecord, Published, published
from schemas.click import ACTIONS, Click, decode_clicks, encode_click
from schemas.columns import decode_columns
from schemas.dead_letter import DeadLetter, bury, decode_dead_letter, encode_dead_letter
from schemas.erasure import decode_erasure, encode_erasure
from schemas.errors import ContractError, ModelRefused
from schemas.item import Item, decode_item, encode_item
from schemas.registry import RegisteredSchemas
from schemas.release import Manifest, ModelRelease, decode_release, digest_of, encode_release, open_manifest
from schemas.strict import DamagedError, end_of
from schemas.user_state import EVENT, HISTORY, RING_START, apply_events, dump_states, empty_states, load_states
from tests.bad_input.damage import EDGES, damaged
from tests.bad_input.plain import Row, verdict
from tests.unit.schemas.test_release import FIELDS
from tests.unit.schemas.wire import HEADER, NOW_MS, USER, body, columns_of, integer, some, text

SEED = st.integers(0, 2**32)
# Records of one seed: enough to make the seed's own cost nothing.
BATCH = 1500
CLICKS = [
    encode_click(Click(*click))
    for click in (
        ("event-1", "user-1", "item-1", NOW_MS),
        ("e", "user-1", "商品 🛒", NOW_MS - 1, "PURCHASE", 300, 9.99, "list-77", {"page": "home", "slot": "3"}),
        (
            "x" * 256,
            "user-1",
            "i" * 130,
            946_684_800_000,
            "IMPRESSION",
            None,
            0.0,
            None,
            {str(n): "" for n in range(70)},
        ),
        ("event-2", "user-1", "item-2", NOW_MS + 300_000, "DISLIKE", 0, None, "", {"long": "v" * 200}),
    )
]
ITEM = encode_item(Item("a", "商品", ["x", "y", "z"], 1.5, False, 9, {"k": "v", "l": "w"}))
ERASURE = encode_erasure("user-1", 5)
RELEASE = encode_release(ModelRelease("20260101-000000", "file:///r", "0" * 64, 1, "canary", 5, b"sig"))
LETTER = encode_dead_letter(bury(b"value", b"key", ("clicks", 1, 2), "malformed", "breaks at the end", 3, "0.1.0"))

# What was decided wrongly once, by name.
FOUND: dict[str, bytes] = {
    "a length in ten bytes, of more than 64 bits": HEADER + body(request_id=some(b"\x82" + b"\x80" * 8 + b"\x02r")),
    "a time in ten bytes, of more than 64 bits": HEADER + body(event_time=b"\x80\xa0\xd5\xed\xee\xe6\x82\x80\x80\x02"),
    # Cut after eight bytes, its ninth would pass for the action, and all that follows would fit, too.
    "a time in nine bytes": HEADER + body(event_time=b"\x80" * 8 + b"\x02", action=integer(1)),
    "a time in eleven bytes": HEADER + body(event_time=b"\x80" * 10 + b"\x01"),
}


def ours(values: list[bytes], keys: list[bytes | None]) -> list[str | Row]:
    """The decoder's verdict on each value of a batch."""
    clicks, bad = decode_clicks(values, keys, NOW_MS)
    found: dict[int, str | Row] = {record.position: record.reason for record in bad}
    rows = zip(
        clicks.event_ids,
        clicks.user_ids,
        clicks.item_ids,
        clicks.event_time.tolist(),
        clicks.action.tolist(),
        strict=True,
    )
    for position, (event, user, item, when, action) in zip(clicks.positions.tolist(), rows, strict=True):
        assert position not in found, "a record is both"
        found[position] = (event, user, item, when, ACTIONS[action])
    return [found[position] for position in range(len(values))]


def agree(values: list[bytes], keys: list[bytes | None]) -> None:
    expected = [verdict(value, key, NOW_MS) for value, key in zip(values, keys, strict=True)]
    together = ours(values, keys)
    wrong = [(v.hex(), e, f) for v, e, f in zip(values, expected, together, strict=True) if e != f]
    assert not wrong, min(wrong, key=lambda found: len(found[0]))
    # Without the bad ones the batch goes the quick way.
    good = [p for p, row in enumerate(expected) if isinstance(row, tuple)]
    alone = ours([values[p] for p in good], [keys[p] for p in good])
    wrong = [(values[p].hex(), expected[p], row) for p, row in zip(good, alone, strict=True) if row != expected[p]]
    assert not wrong, min(wrong, key=lambda found: len(found[0]))


@given(SEED)
def test_damaged_clicks_are_decided_as_by_fastavro_and_plain_python(seed: int) -> None:
    chance = random.Random(seed)
    values = [damaged(CLICKS, chance, keep=chance.choice((0, 10, 10, 10))) for _ in range(BATCH)]
    agree(values, [USER if chance.random() < 0.95 else chance.randbytes(6) for _ in values])


@given(SEED)
def test_clicks_of_edges_alone_are_decided_as_by_fastavro_and_plain_python(seed: int) -> None:
    """Each field is what it should be, or one of the integers at which something gives way."""
    chance = random.Random(seed)
    fields = {
        "event_id": text("e"),
        "user_id": text(USER),
        "item_id": text("item"),
        "event_time": integer(NOW_MS),
        "action": integer(3),
        "dwell_ms": some(integer(4)),
        "value": some(b"\0" * 8),
        "request_id": some(text("r")),
        "context": integer(1) + text("k") + text("v") + integer(0),
    }
    values = []
    for _ in range(BATCH):
        strange = {name: chance.choice(EDGES) for name in fields if chance.random() < 0.15}
        values.append(HEADER + body(**{**fields, **strange}) + (b"" if chance.random() < 0.9 else chance.randbytes(3)))
    agree(values, [USER] * BATCH)


@given(st.lists(st.binary(max_size=60).map(lambda raw: HEADER + raw) | st.binary(max_size=60), max_size=20))
def test_any_bytes_are_decided_as_by_fastavro_and_plain_python(values: list[bytes]) -> None:
    agree(values, [USER] * len(values))


@pytest.mark.parametrize("value", FOUND.values(), ids=FOUND)
def test_what_was_decided_wrongly_once(value: bytes) -> None:
    agree([value], [USER])
    agree([CLICKS[0], value, CLICKS[1]], [USER] * 3)


# ── records that come one by one ─────────────────────────────────────────────────────────────────


def walked(schemas: Published, value: bytes) -> bool:
    """Whether the walk through one record ends at its end."""
    try:
        return end_of(schemas.latest, value, 10) == len(value)
    except DamagedError:
        return False


@pytest.mark.parametrize("record", ["item", "erasure", "model_release"])
@given(seed=SEED)
def test_the_walk_through_one_record_agrees_with_the_walk_through_many(record: str, seed: int) -> None:
    chance, schemas = random.Random(seed), published(record)
    good = {"item": ITEM, "erasure": ERASURE, "model_release": RELEASE}[record]
    values = [damaged([good], chance, keep=10) for _ in range(200)]
    columns = decode_columns(values, 10, schemas.latest)
    for value, failed in zip(values, columns.failed.tolist(), strict=True):
        assert walked(schemas, value) != failed, value.hex()


@given(SEED)
def test_damaged_records_are_refused_or_read_and_written_again_as_the_same(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        keep = chance.choice((0, 10, 10))
        item = decode_item(damaged([ITEM], chance, keep), b"a")
        if isinstance(item, Item):
            assert decode_item(encode_item(item), b"a") == item
        user = decode_erasure(damaged([ERASURE], chance, keep), b"user-1")
        assert isinstance(user, BadRecord) or user == "user-1"
        release = decode_release(damaged([RELEASE], chance, keep))
        if isinstance(release, ModelRelease):
            assert decode_release(encode_release(release)) == release
            assert release.stage in ("shadow", "canary", "full") and 0 <= release.percent <= 100
        letter = decode_dead_letter(damaged([LETTER], chance, keep))
        if isinstance(letter, DeadLetter):
            assert decode_dead_letter(encode_dead_letter(letter)) == letter


@given(st.none() | st.binary(max_size=80), st.none() | st.binary(max_size=20))
def test_any_bytes_are_an_answer_and_no_exception(value: bytes | None, key: bytes | None) -> None:
    assert isinstance(decode_item(value, key), Item | BadRecord)
    assert isinstance(decode_erasure(value, key), str | BadRecord)
    assert isinstance(decode_release(value), ModelRelease | BadRecord)
    assert isinstance(decode_dead_letter(value), DeadLetter | BadRecord)


# ── what is kept, and what comes in files ────────────────────────────────────────────────────────

CLICK = columns_of([Click("new", "user-1", "item-9", NOW_MS, "CART"), Click("old", "user-1", "item-9", NOW_MS - 10**9)])


def state(events: int) -> bytes:
    states = empty_states(1)
    clicks = columns_of([Click(f"e{n}", "user-1", f"item-{n}", NOW_MS + n) for n in range(events)])
    apply_events(states, np.zeros(events, np.int64), clicks)
    return dump_states(states)[0]


STATES = [state(0), state(3), state(HISTORY)]


@given(SEED)
def test_damaged_states_are_refused_by_a_value_error_or_go_on(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        record = damaged(STATES, chance, keep=chance.choice((0, 1)))
        try:
            states, alone = load_states([None, record]), load_states([None])
        except ValueError:
            continue
        assert (len(record) - RING_START) % EVENT.itemsize == 0
        apply_events(states, np.array([1, 0]), CLICK)
        apply_events(alone, np.array([0]), CLICK.select(np.array([1])))
        assert dump_states(states)[0] == dump_states(alone)[0], "a damaged state harmed its neighbour"


def manifest(content: bytes) -> Manifest | ModelRefused:
    try:
        return open_manifest(content, ModelRelease("20260101-000000", "file:///r", digest_of(content).sha256, 1))
    except ModelRefused as refused:
        return refused


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(SEED, st.sampled_from(sorted(FIELDS)), JSON)
def test_a_manifest_of_any_content_is_read_or_refused(seed: int, name: str, strange: Any) -> None:
    manifest(json.dumps({**FIELDS, name: strange}).encode())
    chance = random.Random(seed)
    for _ in range(50):
        manifest(damaged([json.dumps(FIELDS).encode()], chance))


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b'{"version": "\\ud800"}'])
def test_a_manifest_made_to_break_its_reader_is_refused(content: bytes) -> None:
    assert isinstance(manifest(content), ModelRefused)


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps({"schema": json.dumps(value)}).encode()))
def test_any_answer_of_a_registry_is_a_schema_or_none_or_a_contract_error(answer: bytes) -> None:
    try:
        found = RegisteredSchemas(lambda _: answer)(7)
    except ContractError:
        return
    assert found is None or found["type"] == "record"


def test_a_registry_s_answer_made_to_break_its_reader_is_none_or_a_contract_error() -> None:
    assert RegisteredSchemas(lambda _: json.dumps({"schema": "[" * 100_000}).encode())(7) is None
    with pytest.raises(ContractError):
        RegisteredSchemas(lambda _: b"[" * 100_000)(7)
