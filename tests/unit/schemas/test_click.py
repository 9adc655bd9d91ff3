"""Every value on `clicks` becomes a row or a dead letter, once, and none harms another."""

import struct
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import click as module
from schemas import columns
from schemas.avro import BadRecord, Schema, published, without_logical_types
from schemas.click import (
    ACTIONS,
    MAX_AHEAD_MS,
    Click,
    Clicks,
    decode_clicks,
    encode_click,
)
from tests.unit.schemas.wire import HEADER, NOW_MS, USER, body, integer, some, text, value

LATEST = published("click_event").latest
# Without what an id may not hold: controls, odd separators, unassigned characters.
CLEAN = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)
CLICK = st.builds(
    Click,
    event_id=CLEAN,
    user_id=CLEAN,
    item_id=CLEAN,
    event_time=st.integers(module.EARLIEST_MS, NOW_MS + MAX_AHEAD_MS),
    action=st.sampled_from(ACTIONS),
    dwell_ms=st.none() | st.integers(0, 2**31 - 1),
    value=st.none() | st.floats(0, allow_infinity=False),
    request_id=st.none() | st.text(max_size=20),
    context=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4),
)
Row = tuple[int, str, str, str, int, str]


def rows_of(clicks: Clicks) -> list[Row]:
    """Position, event, user, item, time and action of each good record."""
    return list(
        zip(
            clicks.positions.tolist(),
            clicks.event_ids,
            clicks.user_ids,
            clicks.item_ids,
            clicks.event_time.tolist(),
            [ACTIONS[code] for code in clicks.action.tolist()],
            strict=True,
        )
    )


def row_of(position: int, click: Click) -> Row:
    return position, click.event_id, click.user_id, click.item_id, click.event_time, click.action


@given(st.lists(CLICK, max_size=12))
def test_what_a_producer_encodes_is_what_the_job_reads(clicks: list[Click]) -> None:
    decoded, bad = decode_clicks([encode_click(c) for c in clicks], [c.user_id.encode() for c in clicks], NOW_MS)
    assert bad == []
    assert rows_of(decoded) == [row_of(n, c) for n, c in enumerate(clicks)]


def test_hashes_are_those_of_the_ids() -> None:
    from schemas.ids import hash_ids

    clicks = [Click(f"event-{n}", f"user-{n % 2}", "商品" * n, NOW_MS) for n in range(1, 5)]
    decoded, _ = decode_clicks([encode_click(c) for c in clicks], [c.user_id.encode() for c in clicks], NOW_MS)
    assert decoded.event_hash.tolist() == hash_ids([c.event_id for c in clicks]).tolist()
    assert decoded.user_hash.tolist() == hash_ids([c.user_id for c in clicks]).tolist()
    assert decoded.item_hash.tolist() == hash_ids([c.item_id for c in clicks]).tolist()


def test_the_bytes_of_version_1_never_change() -> None:
    click = Click("event-1", "user-1", "item-1", NOW_MS, "CART", 20, 2.5, "list-1", {"page": "home"})
    expected = body(
        action=integer(2),
        dwell_ms=some(integer(20)),
        value=some(struct.pack("<d", 2.5)),
        request_id=some(text("list-1")),
        context=integer(1) + text("page") + text("home") + integer(0),
    )
    assert encode_click(click) == HEADER + expected


def test_actions_keep_their_codes() -> None:
    assert ACTIONS == (
        "VIEW",
        "CLICK",
        "CART",
        "PURCHASE",
        "LIKE",
        "DISLIKE",
        "SHARE",
        "IMPRESSION",
    )
    assert tuple(LATEST["fields"][4]["type"]["symbols"]) == ACTIONS


def test_no_records_are_no_rows() -> None:
    clicks, bad = decode_clicks([], [], NOW_MS)
    assert (len(clicks), bad, clicks.item_ids) == (0, [], [])


# ── several versions of the producers' schema in one batch, named by a Schema Registry ──────────


def _with_fields(change: dict[str, Any], drop: tuple[str, ...] = (), add: tuple[Schema, ...] = ()) -> Schema:
    kept = [f for f in LATEST["fields"] if f["name"] not in drop]
    fields = [{"name": f["name"], "type": change[f["name"]]} if f["name"] in change else f for f in kept]
    return {**LATEST, "fields": [*fields, *add]}


NEW_ACTION = {
    "type": "enum",
    "name": "Action",
    "symbols": ["SHARE", *ACTIONS[:2], "WISH"],
    "default": "CLICK",
}
WRITERS: dict[int, Schema] = {
    1: LATEST,
    2: _with_fields({}, add=({"name": "shop", "type": "string", "default": ""},)),
    3: _with_fields({}, drop=("dwell_ms", "context", "request_id")),
    4: _with_fields({"value": "int", "dwell_ms": "int"}),
    5: _with_fields({"action": NEW_ACTION}),
    6: _with_fields({"value": ["float", "null"]}, drop=("action",)),
}
MADE: dict[int, dict[str, Any]] = {
    1: {},
    2: {"shop": "north"},
    3: {},
    4: {"value": 7, "dwell_ms": 5},
    5: {"action": "WISH"},
    6: {"value": 0.5},
}


def framed(version: int, click: Click) -> bytes:
    out = BytesIO()
    out.write(b"\0" + version.to_bytes(4, "big"))
    fastavro.schemaless_writer(out, without_logical_types(WRITERS[version]), {**asdict(click), **MADE[version]})
    return out.getvalue()


@given(st.lists(st.tuples(st.integers(0, 6), CLICK), max_size=14))
def test_producers_of_several_versions_are_read_in_one_batch_as_avro_resolves_them(
    batch: list[tuple[int, Click]],
) -> None:
    values = [framed(version, click) if version else encode_click(click) for version, click in batch]
    clicks, bad = decode_clicks(values, [c.user_id.encode() for _, c in batch], NOW_MS, WRITERS.get)
    expected = []
    for position, (version, click) in enumerate(batch):
        start, writer = (5, without_logical_types(WRITERS[version])) if version else (10, LATEST)
        read = fastavro.schemaless_reader(BytesIO(values[position][start:]), writer, LATEST)
        assert isinstance(read, dict)
        expected.append(
            (
                position,
                click.event_id,
                click.user_id,
                click.item_id,
                click.event_time,
                read["action"],
            )
        )
    assert bad == []
    assert rows_of(clicks) == expected


def test_a_symbol_we_do_not_know_and_a_missing_action_are_the_default() -> None:
    click = Click("e", "u", "i", NOW_MS, "PURCHASE")
    clicks, _ = decode_clicks([framed(5, click), framed(6, click)], [b"u", b"u"], NOW_MS, WRITERS.get)
    assert [ACTIONS[code] for code in clicks.action.tolist()] == ["CLICK", "CLICK"]


def test_a_time_written_as_int_is_read_as_long() -> None:
    writer = _with_fields({"event_time": "int"})
    raw = b"\0\0\0\0\7" + body(event_time=integer(2_000_000_000))
    _, bad = decode_clicks([raw], [USER], NOW_MS, {7: writer}.get)
    assert bad == [BadRecord(0, "too-old", "event_time 2000000000 is before 2000")]


def test_checks_hold_for_every_version() -> None:
    click = Click("e", "u", "i", NOW_MS)
    values = [
        framed(4, click)[:-1],
        framed(2, click) + b"\0",
        framed(3, Click("e", "u", "", NOW_MS)),
        framed(1, click),
    ]
    clicks, bad = decode_clicks(values, [b"u"] * 4, NOW_MS, WRITERS.get)
    assert [(r.position, r.reason) for r in bad] == [
        (0, "malformed"),
        (1, "malformed"),
        (2, "bad-id"),
    ]
    assert clicks.positions.tolist() == [3]


def test_an_id_unknown_to_the_registry_is_an_unknown_schema() -> None:
    _, bad = decode_clicks([b"\0\0\0\1\0" + body()], [USER], NOW_MS, WRITERS.get)
    assert bad == [BadRecord(0, "unknown-schema", "schema registry id 256")]


NO_CLICKS = {
    "an item": published("item").latest,
    "without a time": _with_fields({}, drop=("event_time",)),
    "user as a number": _with_fields({"user_id": "long"}),
    "time as text": _with_fields({"event_time": "string"}),
    "fields beyond ours": _with_fields({"value": {"type": "fixed", "name": "F", "size": 8}}),
    "no record": {"type": "string"},
}


@pytest.mark.parametrize("writer", NO_CLICKS.values(), ids=NO_CLICKS)
def test_a_registered_schema_that_is_no_click_harms_only_its_own_records(writer: Schema) -> None:
    values = [b"\0\0\0\0\1" + body(), value(), b"\0\0\0\0\1" + body(event_id=text("other"))]
    clicks, bad = decode_clicks(values, [USER] * 3, NOW_MS, {1: writer}.get)
    assert [(r.position, r.reason) for r in bad] == [(0, "unknown-schema"), (2, "unknown-schema")]
    assert clicks.positions.tolist() == [1]


def test_records_of_one_registered_schema_are_decoded_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups: list[int] = []
    decode_columns = columns.decode_columns

    def counted(values: Sequence[bytes], body_start: int, schema: Schema, beside: Sequence[bytes]) -> Any:
        groups.append(len(values))
        return decode_columns(values, body_start, schema, beside)

    monkeypatch.setattr(module, "decode_columns", counted)
    click = Click("e", "u", "i", NOW_MS)
    clicks, _ = decode_clicks([framed(1, click)] * 50, [b"u"] * 50, NOW_MS, WRITERS.get)
    assert len(clicks) == 50
    assert groups == [50]


def test_selected_rows_keep_their_order_and_their_texts() -> None:
    import numpy as np

    made = [Click(f"e{n}", f"u{n}", f"item-{n}", NOW_MS + n, ACTIONS[n]) for n in range(5)]
    clicks, _ = decode_clicks([encode_click(c) for c in made], [c.user_id.encode() for c in made], NOW_MS)
    assert rows_of(clicks.select(np.array([3, 1]))) == [row_of(3, made[3]), row_of(1, made[1])]
    assert rows_of(clicks.select(clicks.event_time > NOW_MS + 2)) == [
        row_of(3, made[3]),
        row_of(4, made[4]),
    ]
    assert clicks.texts(clicks.item, np.array([4, 0])) == ["item-4", "item-0"]
