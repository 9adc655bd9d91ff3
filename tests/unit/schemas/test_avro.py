"""Frames and fingerprints are promises to every producer: their bytes are written down here."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from schemas.avro import (
    BadRecord,
    decode,
    encode,
    published,
    schema_fingerprint,
    without_logical_types,
)
from schemas.click import Click, decode_clicks
from schemas.columns import decode_columns
from tests.unit.schemas.wire import NOW_MS

# Every version ever published: its file, and the ten bytes before each record written with it.
HEADERS = {
    "click_event.v1.avsc": "c301d9b2960239bd033f",
    "item.v1.avsc": "c301fa508708d7424809",
    "erasure.v1.avsc": "c301441af1ce79229dc1",
    "model_release.v1.avsc": "c301afd14112d77d7a68",
    "model_release.v2.avsc": "c3012ed24ffb630913d4",
    "roll_back.v1.avsc": "c30109cef3570bd5b893",
    "dead_letter.v1.avsc": "c3015b465f7221a303b2",
}


def schema_in(file: str) -> Any:
    return without_logical_types(json.loads((resources.files("schemas") / file).read_text()))


def test_every_schema_file_is_a_version_written_down_here() -> None:
    files = {file.name for file in resources.files("schemas").iterdir() if file.name.endswith(".avsc")}
    assert files == set(HEADERS)


@pytest.mark.parametrize(("file", "header"), HEADERS.items())
def test_a_published_version_keeps_its_fingerprint_and_stays_readable(file: str, header: str) -> None:
    record = file.split(".", maxsplit=1)[0]
    assert published(record).by_fingerprint[bytes.fromhex(header)[2:]] == schema_in(file)


@pytest.mark.parametrize("record", sorted({file.split(".")[0] for file in HEADERS}))
def test_the_highest_version_is_the_one_written_and_the_readers(record: str) -> None:
    newest = max((f for f in HEADERS if f.startswith(record + ".")), key=lambda f: int(f.split(".")[1][1:]))
    assert published(record).header.hex() == HEADERS[newest]
    assert published(record).latest == schema_in(newest)


def test_versions_are_numbers_and_older_ones_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {n: {"type": "record", "name": "Thing", "fields": [_number(f"f{n}")]} for n in (1, 9, 10)}
    for n, schema in made.items():
        (tmp_path / f"thing.v{n}.avsc").write_text(json.dumps(schema))
    (tmp_path / "thing.v11.avsc.orig").write_text("{}")
    (tmp_path / "anything.v12.avsc").write_text("{}")
    monkeypatch.setattr(resources, "files", lambda _: tmp_path)
    things = published("thing")
    assert things.latest == made[10]
    assert things.header == b"\xc3\x01" + schema_fingerprint(made[10])
    assert things.by_fingerprint == {schema_fingerprint(schema): schema for schema in made.values()}
    old = b"\xc3\x01" + schema_fingerprint(made[1]) + b"\x06"
    assert decode("thing", old) == {"f10": 0}
    assert decode("thing", encode("thing", {"f10": 4})) == {"f10": 4}


def _number(name: str) -> dict[str, Any]:
    return {"name": name, "type": "int", "default": 0}


@pytest.mark.parametrize("file", [file for file in HEADERS if file.startswith("click_event.")])
def test_every_version_of_a_click_can_be_read_into_columns(file: str) -> None:
    columns = decode_columns([b""], 0, schema_in(file))
    assert {"event_id", "user_id", "item_id"} <= columns.spans.keys()
    assert {"event_time", "action", "value", "dwell_ms"} <= columns.numbers.keys()


def test_the_fingerprint_is_the_one_of_the_specification() -> None:
    assert schema_fingerprint("int") == bytes.fromhex("7275d51a3f395c8f")[::-1]  # type: ignore[arg-type]


def test_documentation_and_logical_types_do_not_change_a_fingerprint() -> None:
    raw = json.loads((resources.files("schemas") / "click_event.v1.avsc").read_text())
    assert raw["fields"][3]["type"] == {"type": "long", "logicalType": "timestamp-millis"}
    assert schema_fingerprint(raw) == schema_fingerprint(published("click_event").latest)
    assert published("click_event").latest["fields"][3]["type"] == {"type": "long"}


FIELDS = {"user_id": "user-1", "requested_at": 5}


def test_what_is_encoded_is_decoded() -> None:
    assert decode("erasure", encode("erasure", FIELDS)) == FIELDS


@pytest.mark.parametrize(
    "fields",
    [
        {"user_id": None, "requested_at": 5},
        {"requested_at": 5},
        {"user_id": "u", "requested_at": "soon"},
    ],
)
def test_wrong_fields_are_not_encoded(fields: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        encode("erasure", fields)


def test_an_unknown_action_is_not_encoded() -> None:
    from schemas.click import encode_click

    with pytest.raises((ValueError, TypeError)):
        encode_click(Click("e", "u", "i", NOW_MS, "BUY"))


def test_a_single_record_says_why_it_cannot_be_read() -> None:
    good = encode("erasure", FIELDS)
    assert decode("erasure", None, 3) == BadRecord(3, "empty", "no value")
    assert decode("erasure", b"", 3) == BadRecord(3, "empty", "no value")
    assert decode("erasure", good + b"ab", 3) == BadRecord(3, "malformed", "2 bytes after the record's end")
    assert decode("item", good) == BadRecord(0, "unknown-schema", "fingerprint 441af1ce79229dc1")
    assert decode("erasure", b"{}") == BadRecord(0, "unknown-framing", "starts with 7b 7d; expected c3 01")
    large = decode("erasure", bytes(65_537))
    assert large == BadRecord(0, "oversized", "65537 bytes; the limit is 65536")
    reasons = [
        verdict.reason for n in range(len(good)) if isinstance(verdict := decode("erasure", good[:n]), BadRecord)
    ]
    assert reasons == ["empty"] + ["unknown-framing"] * 9 + ["malformed"] * (len(good) - 10)


def test_the_frame_of_a_registry_counts_where_one_is_configured() -> None:
    body = encode("erasure", FIELDS)[10:]
    raw = b"\0\0\0\1\2" + body
    asked: list[int] = []

    def registry(schema_id: int) -> dict[str, Any] | None:
        asked.append(schema_id)
        return json.loads((resources.files("schemas") / "erasure.v1.avsc").read_text()) if schema_id == 258 else None

    assert decode("erasure", raw, 0, registry) == FIELDS
    assert decode("erasure", b"\0\0\0\0\1" + body, 0, registry) == BadRecord(
        0, "unknown-schema", "schema registry id 1"
    )
    assert asked == [258, 1]
    verdict = decode("erasure", raw)
    assert isinstance(verdict, BadRecord)
    assert verdict.reason == "unknown-framing"
    assert decode("erasure", encode("erasure", FIELDS), 0, registry) == FIELDS


def test_a_registered_schema_of_another_record_is_malformed_and_does_not_raise() -> None:
    verdict = decode("erasure", b"\0\0\0\0\1\0", 0, lambda _: {"type": "string"})
    assert isinstance(verdict, BadRecord)
    assert verdict.reason == "malformed"


def test_a_registered_schema_that_is_no_record_does_not_stop_a_batch() -> None:
    _, bad = decode_clicks([b"\0\0\0\0\1\0"], [b"u"], NOW_MS, lambda _: {"type": "array", "items": "string"})
    assert [b.reason for b in bad] == ["unknown-schema"]
