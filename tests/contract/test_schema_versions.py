"""A new version of a schema may not strand the records of those who write an older one: checked before it is published.

Each version has its records in tests/golden/records.json, as its producers wrote them; a new one adds its own: what
`schemas.avro.encode(record, fields).hex()` gives, and the fields, bytes as base64.
"""

import base64
import copy
import json
from collections.abc import Callable
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest

from schemas.avro import Schema, decode, published, without_logical_types
from schemas.evolution import conflicts

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "records.json").read_text())
RECORDS = sorted({entry["schema"].split(".")[0] for entry in GOLDEN})
# JSON has no bytes.
BYTES = {"signature", "value", "key"}


def versions(record: str) -> dict[int, Schema]:
    """All versions of a record in this checkout."""
    files = [file for file in resources.files("schemas").iterdir() if file.name.startswith(f"{record}.v")]
    return {
        int(file.name.split(".")[1][1:]): without_logical_types(json.loads(file.read_text()))
        for file in files
        if file.name.endswith(".avsc")
    }


def stranded(found: dict[int, Schema]) -> list[str]:
    """What the newer versions cannot take of the older ones, a line each."""
    return [
        f"v{new} cannot read v{old}: {line}"
        for old in sorted(found)
        for new in sorted(found)
        if old < new
        for line in conflicts(found[old], found[new])
    ]


def fields_of(entry: dict[str, Any]) -> dict[str, Any]:
    raw = entry["schema"].split(".")[0] in ("model_release", "dead_letter")
    return {k: base64.b64decode(v) if raw and k in BYTES and v is not None else v for k, v in entry["fields"].items()}


@pytest.mark.parametrize("record", RECORDS)
def test_every_version_can_be_read_by_every_newer_one(record: str) -> None:
    found = versions(record)
    assert sorted(found) == list(range(1, len(found) + 1)), "versions are numbered without gaps"
    assert stranded(found) == []


def test_every_version_has_its_golden_records() -> None:
    files = {f.name.removesuffix(".avsc") for f in resources.files("schemas").iterdir() if f.name.endswith(".avsc")}
    assert files == {entry["schema"] for entry in GOLDEN}


@pytest.mark.parametrize("entry", GOLDEN, ids=[entry["schema"] for entry in GOLDEN])
def test_golden_records_are_read_as_they_were_written(entry: dict[str, Any]) -> None:
    read = decode(entry["schema"].split(".")[0], bytes.fromhex(entry["record"]))
    assert isinstance(read, dict), read
    # A newer version may know more fields, and may have dropped some.
    written = fields_of(entry)
    shared = read.keys() & written.keys()
    assert shared
    assert {name: read[name] for name in shared} == {name: written[name] for name in shared}


# ── what the check says to changes that somebody may want ────────────────────────────────────────

CLICK = published("click_event").latest
Change = Callable[[dict[str, Any]], None]


def changed(change: Change) -> Schema:
    """ClickEvent with a change; `change` gets its fields by name and may add or take out some."""
    fields = {field["name"]: field for field in copy.deepcopy(CLICK["fields"])}
    change(fields)
    return {**CLICK, "fields": [field for field in fields.values() if field]}


def with_type(name: str, kind: Any) -> Change:
    def change(fields: dict[str, Any]) -> None:
        fields[name]["type"] = kind

    return change


def with_symbols(*symbols: str, default: str | None = "CLICK") -> Change:
    def change(fields: dict[str, Any]) -> None:
        fields["action"]["type"] = {"type": "enum", "name": "Action", "symbols": list(symbols)}
        if default is not None:
            fields["action"]["type"]["default"] = default

    return change


def add(**field: Any) -> Change:
    return lambda fields: fields.update({field["name"]: field})


def drop(name: str) -> Change:
    return lambda fields: fields.update({name: None})


SYMBOLS = CLICK["fields"][4]["type"]["symbols"]
ALLOWED = {
    "nothing": lambda fields: None,
    "a field with a default": add(name="shop", type="string", default=""),
    "an optional field": add(name="shop", type=["null", "string"], default=None),
    "a field less": drop("context"),
    "int to long": with_type("dwell_ms", ["null", "long"]),
    "int to double": with_type("dwell_ms", ["null", "double"]),
    "long to double": with_type("event_time", "double"),
    "string to bytes": with_type("request_id", ["null", "bytes"]),
    "one more action": with_symbols(*SYMBOLS, "WISH"),
    "actions in another order": with_symbols(*SYMBOLS[::-1]),
    "an action less, where there is a default": with_symbols(*SYMBOLS[:-1]),
    "made optional": with_type("item_id", ["null", "string"]),
}
REFUSED = {
    "a field without a default": (add(name="shop", type="string"), "shop is missing and has no default"),
    "another name for a field": (
        lambda fields: fields["item_id"].update(name="sku"),
        "sku is missing and has no default",
    ),
    "long to int": (with_type("event_time", "int"), "event_time is long, not int"),
    "double to float": (with_type("value", ["null", "float"]), "value is double, not float"),
    "a number as text": (with_type("event_time", "string"), "event_time is long, not string"),
    "text as a number": (with_type("user_id", "long"), "user_id is string, not long"),
    "an enum as text": (with_type("action", "string"), "action is enum, not string"),
    "a symbol less, and no default": (with_symbols(*SYMBOLS[:3], default=None), "action may be PURCHASE"),
    "a map as a list": (with_type("context", {"type": "array", "items": "string"}), "context is map, not array"),
    "other values in a map": (with_type("context", {"type": "map", "values": "long"}), "context{} is string, not long"),
}


def fastavro_reads(reader: Schema) -> bool:
    """Whether fastavro resolves a record in which every field has a value."""
    full = next(e for e in GOLDEN if e["schema"] == "click_event.v1" and e["fields"]["value"])
    try:
        fastavro.schemaless_reader(BytesIO(bytes.fromhex(full["record"])[10:]), CLICK, reader)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("change", ALLOWED.values(), ids=ALLOWED)
def test_a_change_that_strands_nobody_is_let_through(change: Change) -> None:
    new = changed(change)
    assert stranded({1: CLICK, 2: new}) == []
    assert fastavro_reads(new)


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_a_change_that_strands_older_producers_is_refused(change: Change, words: str) -> None:
    new = changed(change)
    assert stranded({1: CLICK, 2: new}) == [f"v2 cannot read v1: {words}"]
    assert not fastavro_reads(new)


def test_each_version_is_held_against_all_before_it() -> None:
    without, again = changed(drop("context")), changed(with_type("context", {"type": "array", "items": "string"}))
    assert conflicts(without, again) == []
    assert stranded({1: CLICK, 2: without, 3: again}) == ["v3 cannot read v1: context is map, not array"]


def test_another_record_is_not_a_version() -> None:
    assert conflicts(published("item").latest, CLICK) == ["it is a Item, not a ClickEvent"]
