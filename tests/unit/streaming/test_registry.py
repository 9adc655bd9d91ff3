"""Confluent's framing through a Schema Registry that really answers over HTTP."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from schemas.avro import published
from schemas.click import Click, decode_clicks, encode_click
from schemas.errors import UnreachableError
from streaming.registry import SchemaRegistry, registry

NOW_MS = 1_700_000_000_000


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A registry with schema 7; its address and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            known = self.path == "/schemas/ids/7"
            self.send_response(200 if known else 404)
            self.end_headers()
            if known:
                self.wfile.write(json.dumps({"schema": json.dumps(published("click_event").latest)}).encode())

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", asked
    http.shutdown()
    thread.join()
    http.server_close()


def framed(schema_id: int, click: Click) -> bytes:
    """A click as Confluent's serializer frames it."""
    return b"\0" + schema_id.to_bytes(4, "big") + encode_click(click)[10:]


def test_a_registered_schema_is_read_and_asked_for_once(server: tuple[str, list[str]]) -> None:
    url, asked = server
    found = SchemaRegistry(url)
    click = Click("e", "u", "i", NOW_MS)
    for _ in range(2):
        clicks, bad = decode_clicks([framed(7, click)] * 3, [b"u"] * 3, NOW_MS, found)
        assert (clicks.item_ids, bad) == (["i"] * 3, [])
    assert asked == ["/schemas/ids/7"]


def test_an_id_the_registry_does_not_know_is_a_dead_letter(server: tuple[str, list[str]]) -> None:
    clicks, bad = decode_clicks([framed(8, Click("e", "u", "i", NOW_MS))], [b"u"], NOW_MS, SchemaRegistry(server[0]))
    assert len(clicks) == 0
    assert [(b.reason, b.detail) for b in bad] == [("unknown-schema", "schema registry id 8")]


def test_a_registry_that_does_not_answer_is_unreachable_and_no_dead_letter(
    server: tuple[str, list[str]],
) -> None:
    with pytest.raises(UnreachableError, match=r"kafka\.schema_registry_url"):
        SchemaRegistry("http://127.0.0.1:9")(7)


def test_without_an_address_there_is_no_registry() -> None:
    assert registry(None) is None
