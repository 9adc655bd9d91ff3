"""Confluent's framing through a Schema Registry that really answers over HTTP."""

import json
import time
from types import SimpleNamespace

import pytest

from schemas import registry as module
from schemas.avro import published
from schemas.click import Click, decode_clicks, encode_click
from schemas.errors import ContractError, UnreachableError
from schemas.registry import RegisteredSchemas
from streaming.registry import registry

NOW_MS = 1_700_000_000_000


def framed(schema_id: int, click: Click) -> bytes:
    """A click as Confluent's serializer frames it."""
    return b"\0" + schema_id.to_bytes(4, "big") + encode_click(click)[10:]


def test_a_registered_schema_is_read_and_asked_for_once(schema_registry: tuple[str, list[str]]) -> None:
    url, asked = schema_registry
    found = registry(url)
    click = Click("e", "u", "i", NOW_MS)
    for _ in range(2):
        clicks, bad = decode_clicks([framed(7, click)] * 3, [b"u"] * 3, NOW_MS, found)
        assert (clicks.item_ids, bad) == (["i"] * 3, [])
    assert asked == ["/schemas/ids/7"]


def test_an_id_the_registry_does_not_know_is_a_dead_letter(schema_registry: tuple[str, list[str]]) -> None:
    clicks, bad = decode_clicks([framed(8, Click("e", "u", "i", NOW_MS))], [b"u"], NOW_MS, registry(schema_registry[0]))
    assert len(clicks) == 0
    assert [(b.reason, b.detail) for b in bad] == [("unknown-schema", "schema registry id 8")]


def test_an_unknown_id_is_asked_for_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answers: list[bytes | None] = [None, json.dumps({"schema": json.dumps(published("click_event").latest)}).encode()]

    def fetch(path: str) -> bytes | None:
        asked.append(path)
        return answers[len(asked) - 1]

    found = RegisteredSchemas(fetch)
    assert [found(7), found(7), len(asked)] == [None, None, 1]
    now = time.monotonic()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now + module.UNKNOWN_S + 1))
    assert [found(7), found(7), len(asked)] == [published("click_event").latest] * 2 + [2]


def test_a_registry_that_does_not_answer_is_unreachable_and_no_dead_letter(
    schema_registry: tuple[str, list[str]],
) -> None:
    unreachable = registry("http://127.0.0.1:9")
    assert unreachable is not None
    with pytest.raises(UnreachableError, match=r"kafka\.schema_registry_url"):
        unreachable(7)


@pytest.mark.parametrize(
    "schema",
    [
        'syntax = "proto3"; message Click { string user_id = 1; }',
        '{"type": "object", "properties": {"user_id": {"type": "string"}}}',
        '{"type": "record", "name": "Click", "fields": [{"name": "user_id", "type": "shop.UserId"}]}',
        '{"type": "record", "name": "Click"}',
        '{"type": "enum", "name": "Action", "symbols": ["A", "A"]}',
        '"string"',
    ],
    ids=["Protobuf", "JSON Schema", "a reference", "no fields", "a symbol twice", "no record"],
)
def test_a_registered_schema_that_is_no_avro_record_is_a_dead_letter_and_does_not_stop_the_job(schema: str) -> None:
    found = RegisteredSchemas(lambda _: json.dumps({"schema": schema}).encode())
    good = encode_click(Click("e", "u", "i", NOW_MS))
    clicks, bad = decode_clicks([good, framed(7, Click("e", "u", "i", NOW_MS))], [b"u"] * 2, NOW_MS, found)
    assert clicks.positions.tolist() == [0]
    assert [(b.reason, b.detail) for b in bad] == [("unknown-schema", "schema registry id 7")]


def test_an_answer_that_is_not_the_registrys_says_so() -> None:
    for answer in (b"<html>", b"[]", b'{"error": 1}'):
        with pytest.raises(ContractError, match="answer for id 7 is no schema"):
            RegisteredSchemas(lambda _, answer=answer: answer)(7)  # type: ignore[misc]


def test_without_an_address_there_is_no_registry() -> None:
    assert registry(None) is None
