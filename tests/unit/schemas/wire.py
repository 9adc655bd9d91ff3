"""Clicks written byte by byte, right or wrong on purpose, by no library that would refuse."""

from collections.abc import Sequence

from schemas.click import Click, Clicks, decode_clicks

# Both are written down, not computed: they are part of what producers rely on.
HEADER = bytes.fromhex("c301d9b2960239bd033f")
NOW_MS = 1_767_225_600_000  # 2026-01-01
NULL = b"\x00"
USER = b"user-1"


def integer(number: int) -> bytes:
    """An Avro int or long."""
    left = (number << 1) ^ (number >> 63)
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


def text(content: str | bytes) -> bytes:
    """An Avro string or bytes."""
    raw = content.encode() if isinstance(content, str) else content
    return integer(len(raw)) + raw


def some(content: bytes) -> bytes:
    """The second branch of a union: the value of an optional field."""
    return integer(1) + content


def body(
    event_id: bytes = text("event-1"),
    user_id: bytes = text(USER),
    item_id: bytes = text("item-1"),
    event_time: bytes = integer(NOW_MS),
    action: bytes = integer(1),
    dwell_ms: bytes = NULL,
    value: bytes = NULL,
    request_id: bytes = NULL,
    context: bytes = NULL,
) -> bytes:
    """The body of version 1, each field given as its bytes."""
    return b"".join((event_id, user_id, item_id, event_time, action, dwell_ms, value, request_id, context))


def value(**parts: bytes) -> bytes:
    """A whole Kafka value; `parts` as for `body`."""
    return HEADER + body(**parts)


def columns_of(clicks: Sequence[Click]) -> Clicks:
    """These clicks, through the wire and back; all must be good."""
    from schemas.click import encode_click

    decoded, bad = decode_clicks([encode_click(c) for c in clicks], [c.user_id.encode() for c in clicks], 2**62)
    assert bad == []
    return decoded
