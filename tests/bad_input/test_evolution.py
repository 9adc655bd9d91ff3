"""Old and new producers at once: every record is read as Avro resolves it, or is a dead letter, by itself."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import click as module
from schemas import columns
from schemas.avro import SINGLE_OBJECT, BadRecord, Schema, published, schema_fingerprint, without_logical_types
from schemas.click import ACTIONS, Click, decode_clicks, encode_click
from tests.contract.test_schema_versions import ALLOWED, CLICK, GOLDEN, changed
from tests.unit.schemas.test_click import CLICK as ANY_CLICK
from tests.unit.schemas.test_click import rows_of
from tests.unit.schemas.wire import NOW_MS, USER, body, integer, some, text, value

GOOD = Click("e", "u", "i", NOW_MS)


def written(click: Click, schema: Schema, frame: bytes, **fields: Any) -> bytes:
    out = BytesIO()
    out.write(frame)
    fastavro.schemaless_writer(out, schema, {**asdict(click), **fields})
    return out.getvalue()


def resolved(content: bytes, writer: Schema, reader: Schema) -> dict[str, Any] | None:
    """What fastavro makes of a body; None where it cannot be resolved."""
    try:
        read = fastavro.schemaless_reader(BytesIO(content), writer, reader)
    except Exception:
        return None
    assert isinstance(read, dict)
    return read


# ── a new version is published ───────────────────────────────────────────────────────────────────


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Schema], None]]:
    """Publishes version 2 of ClickEvent beside the schemas of this checkout."""
    for file in resources.files("schemas").iterdir():
        if file.name.endswith(".avsc"):
            (tmp_path / file.name).write_text(file.read_text())

    def publish(schema: Schema) -> None:
        (tmp_path / "click_event.v2.avsc").write_text(json.dumps(schema))
        monkeypatch.setattr(resources, "files", lambda _: tmp_path)
        published.cache_clear()

    yield publish
    monkeypatch.undo()
    published.cache_clear()


# Fields of a record written with the changes of ALLOWED that need another value.
MADE: dict[str, dict[str, Any]] = {
    "a field with a default": {"shop": "north"},
    "an optional field": {"shop": None},
    "int to double": {"dwell_ms": 2.5},
    "string to bytes": {"request_id": b"list"},
    "one more action": {"action": "WISH"},
    "actions in another order": {"action": "PURCHASE"},
    "made optional": {"item_id": "optional"},
}
# "long to double" would make event_time a number with a fraction, which no check of versions can know to be no time.
PUBLISHED = {name: change for name, change in ALLOWED.items() if name not in ("nothing", "long to double")}


@pytest.mark.parametrize("name", PUBLISHED)
def test_after_a_new_version_old_and_new_producers_are_read_in_one_batch(
    name: str, publish: Callable[[Schema], None]
) -> None:
    new = changed(PUBLISHED[name])
    publish(new)
    assert published("click_event").latest == new
    golden = [bytes.fromhex(entry["record"]) for entry in GOLDEN if entry["schema"] == "click_event.v1"]
    newer = written(
        Click("new", "user-1", "item", NOW_MS), new, SINGLE_OBJECT + schema_fingerprint(new), **MADE.get(name, {})
    )
    values = [golden[0], newer, b"nonsense", golden[1], newer[:-1], newer]
    clicks, bad = decode_clicks(values, [USER] * len(values), NOW_MS)
    expected = []
    for position, content in enumerate(values):
        writer = {golden[0][:10]: CLICK, newer[:10]: new}.get(content[:10])
        read = resolved(content[10:], writer, new) if writer else None
        if read is not None:
            action = read["action"] if read["action"] in ACTIONS else "CLICK"
            row = (position, read["event_id"], read["user_id"], read["item_id"], read["event_time"], action)
            expected.append(row)
    assert rows_of(clicks) == expected
    assert [row[0] for row in expected] == [0, 1, 3, 5]
    assert [(record.position, record.reason) for record in bad] == [(2, "unknown-framing"), (4, "malformed")]


def test_a_job_of_yesterday_puts_records_of_tomorrow_aside_and_reads_them_when_it_is_renewed(
    publish: Callable[[Schema], None],
) -> None:
    new = changed(ALLOWED["a field with a default"])
    newer = written(GOOD, new, SINGLE_OBJECT + schema_fingerprint(new), shop="north")
    batch = [newer, encode_click(GOOD)]
    clicks, bad = decode_clicks(batch, [b"u"] * 2, NOW_MS)
    assert clicks.positions.tolist() == [1]
    assert bad == [BadRecord(0, "unknown-schema", f"fingerprint {schema_fingerprint(new).hex()}")]
    publish(new)
    clicks, bad = decode_clicks(batch, [b"u"] * 2, NOW_MS)
    assert (clicks.positions.tolist(), bad) == ([0, 1], [])


# ── producers whose schema a Schema Registry names ───────────────────────────────────────────────

FIELDS = {field["name"]: field for field in CLICK["fields"]}
KINDS: dict[str, list[Any]] = {
    "event_id": ["string", "bytes", ["null", "string"]],
    "user_id": ["string", "bytes"],
    "item_id": ["string", ["string", "null"]],
    "event_time": ["long", "int", ["null", "long"]],
    "action": [
        FIELDS["action"]["type"],
        {"type": "enum", "name": "Action", "symbols": ["SHARE", *ACTIONS[:2], "WISH"], "default": "CLICK"},
        ["null", FIELDS["action"]["type"]],
    ],
    "dwell_ms": ["int", ["null", "int"], ["int", "null"]],
    "value": ["double", "float", "int", "long", ["null", "float"], ["double", "null"]],
    "request_id": ["string", "bytes", ["null", "bytes"]],
    "context": [{"type": "map", "values": "string"}, {"type": "map", "values": "bytes"}],
    "shop": ["string", "long", "boolean", "double", ["null", "string"], {"type": "array", "items": "int"}],
}
NEEDED = ("event_id", "user_id", "item_id", "event_time")
MORE = {"string": "north", "long": -5, "boolean": True, "double": 0.5, "array": [1, 2, 3]}


@st.composite
def writers(draw: st.DrawFn) -> Schema:
    """ClickEvent with fields in another order, some left out, one added, and types that Avro resolves."""
    names = [name for name in KINDS if name in NEEDED or draw(st.booleans())]
    order = draw(st.permutations(names))
    return {**CLICK, "fields": [{"name": name, "type": draw(st.sampled_from(KINDS[name]))} for name in order]}


def fitting(click: Click, schema: Schema, draw: Callable[[st.SearchStrategy[Any]], Any]) -> dict[str, Any]:
    """A click's fields as this writer has them, now and then null where it may."""
    made: dict[str, Any] = {}
    for field in schema["fields"]:
        name, kind = field["name"], field["type"]
        if isinstance(kind, list):
            if draw(st.integers(0, 5)) == 0:
                made[name] = None
                continue
            kind = next(branch for branch in kind if branch != "null")
        word = kind["type"] if isinstance(kind, dict) else kind
        content: Any = MORE.get(word) if name == "shop" else getattr(click, name)
        if word == "enum" and content not in kind["symbols"]:
            content = "WISH"
        if content is None:
            content = {"string": "", "bytes": "", "int": 1, "long": 1}.get(word, 1.0)
        if word in ("int", "long") and name != "shop":
            content = min(int(content), 2**31 - 1)
        if word == "float":
            content = min(content, 3e38)
        if word == "bytes":
            content = content.encode()
        if word == "map" and kind["values"] == "bytes":
            content = {key: entry.encode() for key, entry in content.items()}
        made[name] = content
    return made


@given(st.data())
def test_whatever_avro_resolves_is_read_as_avro_resolves_it(data: st.DataObject) -> None:
    registered = {n: data.draw(writers()) for n in range(1, 4)}
    batch = data.draw(st.lists(st.tuples(st.integers(0, 3), ANY_CLICK), max_size=10))
    values, expected = [], []
    for position, (n, click) in enumerate(batch):
        if n == 0:
            content, writer, start = encode_click(click), CLICK, 10
        else:
            writer, start = registered[n], 5
            out = BytesIO()
            fastavro.schemaless_writer(out, writer, fitting(click, writer, data.draw))
            content = b"\0" + n.to_bytes(4, "big") + out.getvalue()
        values.append(content)
        read = resolved(content[start:], writer, CLICK)
        # A time that fits into an int lies in 1970.
        if read is not None and read["event_time"] >= module.EARLIEST_MS:
            row = (position, read["event_id"], read["user_id"], read["item_id"], read["event_time"], read["action"])
            expected.append(row)
    clicks, bad = decode_clicks(values, [click.user_id.encode() for _, click in batch], NOW_MS, registered.get)
    assert rows_of(clicks) == expected
    good = {row[0] for row in expected}
    assert [record.position for record in bad] == [p for p in range(len(values)) if p not in good]
    assert {record.reason for record in bad} <= {"malformed", "too-old", "bad-id"}


def with_fields(change: dict[str, Any], drop: tuple[str, ...] = ()) -> Schema:
    kept = [field for name, field in FIELDS.items() if name not in drop]
    return {**CLICK, "fields": [{**f, "type": change[f["name"]]} if f["name"] in change else f for f in kept]}


def test_a_null_where_we_need_a_value_is_malformed_and_no_value_of_ours() -> None:
    """The first symbol, an empty id or a time of 0 would be what the missing value looks like."""
    for name, position in (("action", 4), ("event_time", 3), ("item_id", 2)):
        kind = FIELDS[name]["type"]
        writer = without_logical_types(with_fields({name: ["null", kind]}))
        parts = [text("e"), text(USER), text("i"), integer(NOW_MS), integer(3), b"\0\0\0\0"]
        given_, null = list(parts), list(parts)
        given_[position], null[position] = some(parts[position]), b"\0"
        values = [b"\0\0\0\0\1" + b"".join(given_), b"\0\0\0\0\1" + b"".join(null)]
        clicks, bad = decode_clicks(values, [USER] * 2, NOW_MS, {1: writer}.get)
        assert [ACTIONS[code] for code in clicks.action.tolist()] == ["PURCHASE"]
        assert bad == [BadRecord(1, "malformed", f"{name} is null")]


NO_CLICKS = {
    "an item": (published("item").latest, "it is a Item, not a ClickEvent"),
    "without a time": (with_fields({}, drop=("event_time",)), "event_time is missing and has no default"),
    "user as a number": (with_fields({"user_id": "long"}), "user_id is long, not string"),
    "time as text": (with_fields({"event_time": "string"}), "event_time is string, not long"),
    "time as a double": (with_fields({"event_time": "double"}), "event_time is double, not long"),
    "action as text": (with_fields({"action": "string"}), "action is string, not enum"),
    "value as text": (with_fields({"value": ["null", "string"]}), "value is string, not double"),
    "value as fixed bytes": (
        with_fields({"value": {"type": "fixed", "name": "F", "size": 8}}),
        "value is fixed, not double",
    ),
    "context of numbers": (
        with_fields({"context": {"type": "map", "values": "long"}}),
        "context{} is long, not string",
    ),
    "a type that no record of ours has": (
        {**CLICK, "fields": [*CLICK["fields"], {"name": "f", "type": {"type": "fixed", "name": "F", "size": 8}}]},
        "Avro type 'fixed' is not used by the project's records",
    ),
    "no record": ({"type": "string"}, "it is string, not record"),
}


@pytest.mark.parametrize(("writer", "words"), NO_CLICKS.values(), ids=NO_CLICKS)
def test_a_registered_schema_that_is_no_click_harms_only_its_own_records(writer: Schema, words: str) -> None:
    values = [b"\0\0\0\0\1" + body(), value(), b"\0\0\0\0\1" + body(event_id=text("other"))]
    clicks, bad = decode_clicks(values, [USER] * 3, NOW_MS, {1: writer}.get)
    detail = f"cannot be read as ClickEvent: {words}"
    assert bad == [BadRecord(0, "unknown-schema", detail), BadRecord(2, "unknown-schema", detail)]
    assert clicks.positions.tolist() == [1]


def test_an_id_unknown_to_the_registry_is_an_unknown_schema() -> None:
    _, bad = decode_clicks([b"\0\0\0\1\0" + body()], [USER], NOW_MS, {1: CLICK}.get)
    assert bad == [BadRecord(0, "unknown-schema", "schema registry id 256")]


def test_a_time_written_as_int_is_read_as_long() -> None:
    raw = b"\0\0\0\0\7" + body(event_time=integer(2_000_000_000))
    _, bad = decode_clicks([raw], [USER], NOW_MS, {7: with_fields({"event_time": "int"})}.get)
    assert bad == [BadRecord(0, "too-old", "event_time 2000000000 is before 2000")]


def test_records_of_one_registered_schema_are_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    decode_columns = columns.decode_columns

    def counted(values: Sequence[bytes], body_start: int, schema: Schema, beside: Sequence[bytes]) -> Any:
        groups.append(len(values))
        return decode_columns(values, body_start, schema, beside)

    monkeypatch.setattr(module, "decode_columns", counted)
    raw = written(GOOD, CLICK, b"\0\0\0\0\1")
    clicks, _ = decode_clicks([raw] * 50, [b"u"] * 50, NOW_MS, {1: CLICK}.get)
    assert len(clicks) == 50
    assert groups == [50]
