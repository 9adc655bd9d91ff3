"""What becomes of one value on `clicks`, decided by fastavro and some plain Python: the judge of the decoder."""

import math
import unicodedata
from collections.abc import Callable
from io import BytesIO
from typing import Any

import fastavro

from schemas.avro import MAX_VALUE_BYTES
from schemas.click import ACTIONS, EARLIEST_MS, MAX_AHEAD_MS
from schemas.spans import MAX_ENTRIES
from tests.unit.schemas.wire import HEADER

Row = tuple[str, str, str, int, str]


class _Malformed(Exception):  # noqa: N818
    pass


def verdict(value: bytes | None, key: bytes | None, now_ms: int) -> str | Row:
    """The reason against a value, or its (event, user, item, time, action)."""
    if not value:
        return "empty"
    if len(value) > MAX_VALUE_BYTES:
        return "oversized"
    if value[:2] != HEADER[:2] or len(value) < len(HEADER):
        return "unknown-framing"
    if value[: len(HEADER)] != HEADER:
        return "unknown-schema"
    try:
        found = _read(value[len(HEADER) :])
    except Exception:  # fastavro raises whatever the bytes make of it
        return "malformed"
    ids = [found["event_id"], found["user_id"], found["item_id"]]
    if any(_is_no_id(raw) for raw in ids):
        return "bad-id"
    if key != found["user_id"]:
        return "wrong-key"
    if found["event_time"] < EARLIEST_MS:
        return "too-old"
    if found["event_time"] > now_ms + MAX_AHEAD_MS:
        return "future"
    price, dwell = found["value"], found["dwell_ms"]
    if (price is not None and not (math.isfinite(price) and price >= 0)) or (dwell is not None and dwell < 0):
        return "bad-number"
    event, user, item = (raw.decode() for raw in ids)
    return event, user, item, found["event_time"], ACTIONS[found["action"]]


def _read(body: bytes) -> dict[str, Any]:
    """The fields of a body, each read by fastavro as it lies there, and what fastavro does not mind."""
    source = BytesIO(body)

    def read(kind: Any) -> Any:
        return fastavro.schemaless_reader(source, kind, None)

    def number(below: int = 2**64) -> int:
        start = source.tell()
        found = read("long")
        written = body[start : source.tell()]
        # fastavro reads on beyond 64 bits, and lets them fall.
        if len(written) > 10 or (len(written) == 10 and written[-1] > 1) or (below < 2**64 and not 0 <= found < below):
            raise _Malformed
        return int(found)

    def raw() -> bytes:
        start = source.tell()
        number()
        source.seek(start)
        # As bytes: whether they are UTF-8 matters in ids alone.
        return bytes(read("bytes"))

    def optional(content: Callable[[], Any]) -> Any:
        return content() if number(below=2) else None

    fields: dict[str, Any] = {name: raw() for name in ("event_id", "user_id", "item_id")}
    fields["event_time"], fields["action"] = number(), number(below=len(ACTIONS))
    fields["dwell_ms"] = optional(number)
    fields["value"] = optional(lambda: read("double"))
    fields["request_id"] = optional(raw)
    entries = 0
    while block := number():
        if block < 0:
            number()
        entries += abs(block)
        if entries > MAX_ENTRIES:
            raise _Malformed
        for _ in range(abs(block)):
            raw(), raw()
    if source.read(1):
        raise _Malformed
    return fields


def _is_no_id(raw: bytes) -> bool:
    try:
        return not 1 <= len(raw) <= 256 or any(unicodedata.category(c) == "Cc" for c in raw.decode())
    except UnicodeDecodeError:
        return True
