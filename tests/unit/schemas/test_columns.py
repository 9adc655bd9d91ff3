"""Columns hold what fastavro, record by record, finds in the same bytes."""

from io import BytesIO
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.avro import Schema, published
from schemas.columns import decode_columns
from schemas.spans import Columns
from tests.unit.schemas.wire import HEADER, body, integer, some, text, value

CLICK: Schema = published("click_event").latest
SYMBOLS: list[str] = CLICK["fields"][4]["type"]["symbols"]
TEXT = st.text(max_size=30)
RECORD = st.fixed_dictionaries(
    {
        "event_id": TEXT,
        "user_id": TEXT,
        "item_id": TEXT,
        "event_time": st.integers(-(2**63), 2**63 - 1),
        "action": st.sampled_from(SYMBOLS),
        "dwell_ms": st.none() | st.integers(-(2**31), 2**31 - 1),
        "value": st.none() | st.floats(allow_nan=False),
        "request_id": st.none() | TEXT,
        "context": st.dictionaries(TEXT, TEXT, max_size=6),
    }
)


def written(record: dict[str, Any], schema: Schema = CLICK) -> bytes:
    out = BytesIO(HEADER)
    out.seek(len(HEADER))
    fastavro.schemaless_writer(out, schema, record)
    return out.getvalue()


def string(columns: Columns, name: str, row: int) -> str:
    span = columns.spans[name]
    return columns.buffer[span.start[row] : span.start[row] + span.length[row]].tobytes().decode()


def as_record(columns: Columns, row: int) -> dict[str, Any]:
    """A row of columns as fastavro would give it, without the map, which columns step over."""
    present = columns.present
    return {
        "event_id": string(columns, "event_id", row),
        "user_id": string(columns, "user_id", row),
        "item_id": string(columns, "item_id", row),
        "event_time": int(columns.numbers["event_time"][row]),
        "action": columns.symbols["action"][columns.numbers["action"][row]],
        "dwell_ms": int(columns.numbers["dwell_ms"][row]) if present["dwell_ms"][row] else None,
        "value": float(columns.numbers["value"][row]) if present["value"][row] else None,
        "request_id": string(columns, "request_id", row) if present["request_id"][row] else None,
    }


@given(st.lists(RECORD, min_size=1, max_size=12))
def test_columns_hold_what_fastavro_reads(records: list[dict[str, Any]]) -> None:
    values = [written(record) for record in records]
    columns = decode_columns(values, len(HEADER), CLICK)
    assert not columns.failed.any()
    for row, content in enumerate(values):
        read = fastavro.schemaless_reader(BytesIO(content[len(HEADER) :]), CLICK, CLICK)
        assert isinstance(read, dict)
        assert read.pop("context") == records[row]["context"]
        assert as_record(columns, row) == read


def entries(count: int) -> bytes:
    return b"".join(text(f"k{n}") + text("v" * n) for n in range(count))


MAPS = {
    "empty": integer(0),
    "one block": integer(3) + entries(3) + integer(0),
    "two blocks": integer(2) + entries(2) + integer(1) + entries(1) + integer(0),
    "with its size": integer(-3) + integer(len(entries(3))) + entries(3) + integer(0),
    "both kinds": integer(-2) + integer(len(entries(2))) + entries(2) + integer(1) + entries(1) + integer(0),
    "256 entries": integer(256) + entries(256) + integer(0),
}


@pytest.mark.parametrize("context", MAPS.values(), ids=MAPS)
def test_a_map_is_stepped_over_however_it_is_blocked(context: bytes) -> None:
    content = value(context=context, value=some(np.float64(2.5).tobytes()))
    read = fastavro.schemaless_reader(BytesIO(content[len(HEADER) :]), CLICK, CLICK)
    assert isinstance(read, dict)
    del read["context"]
    columns = decode_columns([value(), content, value()], len(HEADER), CLICK)
    assert columns.failed.tolist() == [False, False, False]
    assert as_record(columns, 1) == read
    assert as_record(columns, 0) == as_record(columns, 2)


BREAKS = {
    "no length": (b"", "event_id"),
    "negative length": (body(event_id=integer(-1)), "event_id"),
    "length past the end": (body(event_id=integer(200)), "event_id"),
    "length of 2**62": (body(item_id=integer(2**62)), "item_id"),
    "length of 2**63 - 1": (body(item_id=integer(2**63 - 1)), "item_id"),
    "integer of eleven bytes": (body(event_time=b"\x80" * 10 + b"\x01"), "event_time"),
    "integer without its end": (text("e") + text("u") + text("i") + b"\x80\x80", "event_time"),
    "enum out of range": (body(action=integer(8)), "action"),
    "negative enum": (body(action=integer(-1)), "action"),
    "third branch of two": (body(dwell_ms=integer(2)), "dwell_ms"),
    "negative branch": (body(dwell_ms=integer(-1)), "dwell_ms"),
    "half a double": (body()[:-3] + some(b"\0\0\0\0"), "value"),
    "map of more than 256": (body(context=integer(257) + entries(257) + integer(0)), "context"),
    "map of more than 256 in two blocks": (
        body(context=integer(200) + entries(200) + integer(57) + entries(57) + integer(0)),
        "context",
    ),
    "map of 2**62": (body(context=integer(2**62)), "context"),
    "map of -2**63": (body(context=integer(-(2**63)) + integer(0) + integer(0)), "context"),
    "map that goes on": (body(context=integer(2) + entries(1)), "context"),
    "map without its end": (body(context=b""), "context"),
    "bytes after the end": (body() + b"\0", "the end"),
}


@pytest.mark.parametrize(("broken", "field"), BREAKS.values(), ids=BREAKS)
def test_a_broken_record_fails_at_its_field_and_harms_no_neighbour(broken: bytes, field: str) -> None:
    whole = [value(event_id=text("before")), value(event_id=text("after"))]
    columns = decode_columns([whole[0], HEADER + broken, whole[1]], len(HEADER), CLICK)
    assert columns.failed.tolist() == [False, True, False]
    names = [f["name"] for f in CLICK["fields"]] + ["the end"]
    assert names[columns.failed_field[1]] == field
    # The last record of a batch has no neighbour whose bytes it could take for its own.
    alone = decode_columns([HEADER + broken], len(HEADER), CLICK)
    assert names[alone.failed_field[0]] == field
    assert [string(columns, "event_id", row) for row in (0, 2)] == ["before", "after"]
    assert as_record(columns, 2) == as_record(decode_columns([whole[1]], len(HEADER), CLICK), 0)


def test_every_type_of_the_projects_records_is_read() -> None:
    schema = {
        "type": "record",
        "name": "All",
        "fields": [
            {"name": "flag", "type": "boolean"},
            {"name": "small", "type": "float"},
            {"name": "tags", "type": {"type": "array", "items": ["null", "double"]}},
            {"name": "raw", "type": "bytes"},
            {"name": "nothing", "type": "null"},
            {"name": "backwards", "type": ["long", "null"]},
        ],
    }
    rows = [
        {
            "flag": True,
            "small": 0.5,
            "tags": [1.0, None, 2.0],
            "raw": b"\xff",
            "nothing": None,
            "backwards": 7,
        },
        {"flag": False, "small": -2.0, "tags": [], "raw": b"", "nothing": None, "backwards": None},
    ]
    columns = decode_columns([written(row, schema) for row in rows], len(HEADER), schema)
    assert columns.failed.tolist() == [False, False]
    assert columns.numbers["flag"].tolist() == [1, 0]
    assert columns.numbers["small"].tolist() == [0.5, -2.0]
    assert columns.spans["raw"].length.tolist() == [1, 0]
    assert columns.present["backwards"].tolist() == [True, False]
    assert columns.numbers["backwards"][0] == 7
    broken = written(rows[1], schema).replace(HEADER + b"\0", HEADER + b"\2")
    assert decode_columns([broken], len(HEADER), schema).failed_field.tolist() == [0]


@pytest.mark.parametrize(
    "kind",
    [
        {"type": "fixed", "name": "F", "size": 4},
        {"type": "record", "name": "R", "fields": []},
        ["null", "int", "string"],
        ["int", "string"],
    ],
)
def test_a_schema_beyond_the_projects_types_is_refused_whole(kind: Any) -> None:
    with pytest.raises(ValueError, match="used by the project's records"):
        decode_columns([HEADER], len(HEADER), {"fields": [{"name": "x", "type": kind}]})


@given(st.lists(RECORD, min_size=1, max_size=4), st.data())
def test_damaged_bytes_are_told_apart_as_record_by_record(records: list[dict[str, Any]], data: st.DataObject) -> None:
    values = [bytearray(written(record)) for record in records]
    for _ in range(data.draw(st.integers(1, 3))):
        hit = data.draw(st.sampled_from(values))
        place = data.draw(st.integers(len(HEADER), len(hit) - 1))
        hit[place] = data.draw(st.integers(0, 255))
    together = decode_columns([bytes(v) for v in values], len(HEADER), CLICK)
    for row, content in enumerate(values):
        alone = decode_columns([bytes(content), HEADER + b"\xff"], len(HEADER), CLICK)
        assert together.failed[row] == alone.failed[0]
        assert together.failed_field[row] == alone.failed_field[0]


def test_an_integer_too_long_for_the_quick_way_is_read_all_the_same() -> None:
    # Cut after eight bytes, its ninth would pass for the action, and all that follows would fit, too.
    content = value(event_time=b"\x80" * 8 + b"\x02", action=integer(1))
    read = fastavro.schemaless_reader(BytesIO(content[len(HEADER) :]), CLICK, CLICK)
    assert isinstance(read, dict)
    del read["context"]
    assert as_record(decode_columns([content], len(HEADER), CLICK), 0) == read
