"""What may come in at each boundary that is no good, with the reason and the words it gets; for all tests here."""

import gzip
import json
import math
import struct
from typing import NamedTuple

from schemas.avro import MAX_VALUE_BYTES
from schemas.click import EARLIEST_MS, MAX_AHEAD_MS
from schemas.erasure import encode_erasure
from schemas.ids import MAX_ID_BYTES
from schemas.item import Item, encode_item
from schemas.release import ModelRelease, encode_release
from tests.unit.schemas.wire import HEADER, NOW_MS, NULL, USER, body, integer, some, text, value

ITEM, ERASURE, RELEASE = encode_item(Item("a")), encode_erasure("a"), encode_release(ModelRelease("v", "u", "d", 1))
# More entries than the walk takes, though they fit into 64 KiB.
MANY_ENTRIES = b"".join(integer(256) + b"\0\0" * 256 for _ in range(120)) + integer(0)
LONGEST_LONG = b"\xff" * 9 + b"\x01"


class Case(NamedTuple):
    """A record and its verdict; `detail` is how the verdict's words begin."""

    value: bytes | None
    reason: str
    detail: str
    key: bytes | None = USER


def double(number: float) -> bytes:
    return struct.pack("<d", number)


def events(now_ms: int = NOW_MS) -> dict[str, Case]:
    """Bad values of `clicks`, and keys that are not theirs."""
    good = value(event_time=integer(now_ms))
    ahead = now_ms + MAX_AHEAD_MS

    def with_(**parts: bytes) -> bytes:
        return value(**{"event_time": integer(now_ms), **parts})

    return {
        "no value": Case(None, "empty", "no value"),
        "nothing in it": Case(b"", "empty", "no value"),
        # ── not framed, or by somebody else ──
        "json": Case(json.dumps({"user_id": "user-1"}).encode(), "unknown-framing", "starts with 7b 22 75 73;"),
        "text": Case("user-1 clicked item-1".encode("utf-16"), "unknown-framing", "starts with ff fe 75 00;"),
        "csv": Case(b"event-1,user-1,item-1\n", "unknown-framing", "starts with 65 76 65 6e;"),
        "gzip": Case(gzip.compress(good, mtime=0), "unknown-framing", "starts with 1f 8b 08 00;"),
        "no frame": Case(good[len(HEADER) :], "unknown-framing", "starts with 0e 65 76 65;"),
        "frame of a registry, without one": Case(b"\0\0\0\0\1" + body(), "unknown-framing", "starts with 00 00 00 00;"),
        "nine bytes of a frame": Case(HEADER[:9], "unknown-framing", "starts with c3 01 d9 b2;"),
        "frame twice": Case(HEADER + good, "malformed", "breaks at event_id"),
        "an Avro file": Case(b"Obj\1" + good, "unknown-framing", "starts with 4f 62 6a 01;"),
        "fingerprint of nobody": Case(
            b"\xc3\x01" + b"\xaa" * 8 + body(), "unknown-schema", "fingerprint aaaaaaaaaaaaaaaa"
        ),
        "fingerprint in the other order": Case(
            HEADER[:2] + HEADER[:1:-1] + body(), "unknown-schema", "fingerprint 3f03bd390296b2d9"
        ),
        "an item": Case(ITEM, "unknown-schema", "fingerprint fa508708d7424809"),
        "an erasure": Case(ERASURE, "unknown-schema", "fingerprint 441af1ce79229dc1"),
        # ── too long, too short ──
        "over 64 KiB": Case(good + bytes(MAX_VALUE_BYTES), "oversized", "65579 bytes; the limit is 65536"),
        "one byte over 64 KiB": Case(good.ljust(MAX_VALUE_BYTES + 1, b"\0"), "oversized", "65537 bytes;"),
        "frame alone": Case(HEADER, "malformed", "breaks at event_id"),
        "cut in a string": Case(good[:14], "malformed", "breaks at event_id"),
        "cut in the time": Case(good[:35], "malformed", "breaks at event_time"),
        "cut before the last field": Case(good[:-1], "malformed", "breaks at context"),
        "a byte after the end": Case(good + b"\0", "malformed", "breaks at the end"),
        "the record twice": Case(good + good, "malformed", "breaks at the end"),
        # ── lengths and numbers that cannot be ──
        "length -1": Case(with_(item_id=integer(-1)), "malformed", "breaks at item_id"),
        "negative length": Case(with_(item_id=integer(-5)), "malformed", "breaks at item_id"),
        "most negative length": Case(with_(item_id=integer(-(2**63))), "malformed", "breaks at item_id"),
        "huge length": Case(with_(item_id=integer(2**62)), "malformed", "breaks at item_id"),
        "largest length": Case(with_(item_id=integer(2**63 - 1)), "malformed", "breaks at item_id"),
        "length one too many at the end": Case(
            with_(context=integer(1) + text("k") + integer(3) + b"vv\0"), "malformed", "breaks at context"
        ),
        "an integer of eleven bytes": Case(with_(event_time=b"\x80" * 10 + b"\1"), "malformed", "breaks at event_time"),
        "an integer without an end": Case(HEADER + b"\xff" * 40, "malformed", "breaks at event_id"),
        "action 8": Case(with_(action=integer(8)), "malformed", "breaks at action"),
        "action -1": Case(with_(action=integer(-1)), "malformed", "breaks at action"),
        "action 2^40": Case(with_(action=integer(2**40)), "malformed", "breaks at action"),
        "branch 2 of two": Case(with_(dwell_ms=integer(2)), "malformed", "breaks at dwell_ms"),
        "branch -1": Case(with_(request_id=integer(-1) + text("r")), "malformed", "breaks at request_id"),
        "half a double": Case(HEADER + body()[:-3] + some(b"\0" * 4), "malformed", "breaks at value"),
        "a map of 30 720 entries": Case(with_(context=MANY_ENTRIES), "malformed", "breaks at context"),
        "a map of 2^60 entries": Case(with_(context=integer(2**60) + NULL), "malformed", "breaks at context"),
        "a map of -2^63 entries": Case(with_(context=integer(-(2**63)) + NULL), "malformed", "breaks at context"),
        "a map without an end": Case(
            with_(context=integer(1) + text("k") + text("v")), "malformed", "breaks at context"
        ),
        # ── ids ──
        "empty event id": Case(with_(event_id=text("")), "bad-id", "event_id has 0 bytes;"),
        "empty item id": Case(with_(item_id=text("")), "bad-id", "item_id has 0 bytes;"),
        "empty user id": Case(with_(user_id=text("")), "bad-id", "user_id has 0 bytes;", b""),
        "long event id": Case(with_(event_id=text("é" * 129)), "bad-id", "event_id has 258 bytes;"),
        "long item id": Case(with_(item_id=text("x" * (MAX_ID_BYTES + 1))), "bad-id", "item_id has 257 bytes;"),
        "long user id": Case(with_(user_id=text("x" * 257)), "bad-id", "user_id has 257 bytes;", b"x" * 257),
        "an item id of 60 KB": Case(with_(item_id=text("x" * 60_000)), "bad-id", "item_id has 60000 bytes;"),
        "invalid UTF-8": Case(with_(item_id=text(b"\xff\xfe")), "bad-id", "item_id is not UTF-8"),
        "half a character": Case(with_(item_id=text("é".encode()[:1])), "bad-id", "item_id is not UTF-8"),
        "a character the long way": Case(with_(item_id=text(b"\xc0\xaf")), "bad-id", "item_id is not UTF-8"),
        "surrogate": Case(with_(event_id=text(b"\xed\xa0\x80")), "bad-id", "event_id is not UTF-8"),
        "Latin-1": Case(with_(user_id=text(b"Andr\xe9")), "bad-id", "user_id is not UTF-8", b"Andr\xe9"),
        "line feed": Case(with_(item_id=text("item\n1")), "bad-id", "item_id has control characters"),
        "carriage return": Case(with_(user_id=text("u\r")), "bad-id", "user_id has control characters", b"u\r"),
        "tab": Case(with_(item_id=text("item\t1")), "bad-id", "item_id has control characters"),
        "nul": Case(with_(event_id=text("event\x001")), "bad-id", "event_id has control characters"),
        "escape sequence": Case(with_(item_id=text("\x1b[2J")), "bad-id", "item_id has control characters"),
        "delete": Case(with_(item_id=text("item\x7f")), "bad-id", "item_id has control characters"),
        "C1 control": Case(with_(item_id=text("item\x85")), "bad-id", "item_id has control characters"),
        # ── keys ──
        "no key": Case(good, "wrong-key", "key None is not user_id", None),
        "empty key": Case(good, "wrong-key", "key b'' is not user_id", b""),
        "key of another": Case(good, "wrong-key", "key b'user-2' is not user_id", b"user-2"),
        "key and a space": Case(good, "wrong-key", "key b'user-1 ' is not user_id", b"user-1 "),
        "key in capitals": Case(good, "wrong-key", "key b'User-1' is not user_id", b"User-1"),
        "key that is no text": Case(good, "wrong-key", r"key b'\xff' is not user_id", b"\xff"),
        "key with a length before it": Case(good, "wrong-key", r"key b'\x0cuser-1' is not user_id", text(USER)),
        "key of 900 KB": Case(good, "wrong-key", f"key b'{'k' * 40}'… of 900000 bytes is not", b"k" * 900_000),
        # ── numbers and times ──
        "value NaN": Case(with_(value=some(double(math.nan))), "bad-number", "value is nan"),
        "value infinite": Case(with_(value=some(double(math.inf))), "bad-number", "value is inf"),
        "value negative": Case(with_(value=some(double(-0.01))), "bad-number", "value is -0.01"),
        "dwell negative": Case(with_(dwell_ms=some(integer(-1))), "bad-number", "dwell_ms is -1"),
        "time 0": Case(with_(event_time=integer(0)), "too-old", "event_time 0 is before 2000"),
        "seconds for milliseconds": Case(
            with_(event_time=integer(now_ms // 1000)), "too-old", f"event_time {now_ms // 1000} is before 2000"
        ),
        "last moment of 1999": Case(
            with_(event_time=integer(EARLIEST_MS - 1)), "too-old", "event_time 946684799999 is before 2000"
        ),
        "smallest time": Case(with_(event_time=LONGEST_LONG), "too-old", "event_time -9223372036854775808 is before"),
        # The job's clock goes on while a record waits for it: a minute is not enough to make these good.
        "six minutes ahead": Case(
            with_(event_time=integer(ahead + 60_000)), "future", f"event_time {ahead + 60_000} is"
        ),
        "microseconds for milliseconds": Case(with_(event_time=integer(now_ms * 1000)), "future", "event_time"),
        "largest time": Case(with_(event_time=integer(2**63 - 1)), "future", "event_time 9223372036854775807 is"),
    }


def _item(tail: bytes = b"", price: bytes = NULL, available: bytes = b"\1", categories: bytes = NULL) -> bytes:
    return ITEM[:10] + text("a") + NULL + categories + price + available + NULL + NULL + tail


ITEMS = {
    "key of another": Case(ITEM, "wrong-key", "key b'b' is not item_id", b"b"),
    "no key": Case(ITEM, "wrong-key", "a message of items needs item_id as its key", None),
    "empty key": Case(encode_item(Item("")), "wrong-key", "a message of items needs", b""),
    "nothing at all": Case(None, "empty", "a message of items needs", None),
    "gone, with an empty key": Case(None, "empty", "a message of items needs", b""),
    "gone, with a key that is no text": Case(None, "bad-id", "the key is not UTF-8", b"\xff"),
    "empty value": Case(b"", "empty", "no value", b"a"),
    "line feed": Case(encode_item(Item("a\nb")), "bad-id", "the key has control characters", b"a\nb"),
    "long id": Case(encode_item(Item("x" * 257)), "bad-id", "the key has 257 bytes;", b"x" * 257),
    "key of 900 KB": Case(ITEM, "bad-id", "the key has 900000 bytes;", b"k" * 900_000),
    "json": Case(b'{"item_id": "a"}', "unknown-framing", "starts with 7b 22 69 74;", b"a"),
    "gzip": Case(gzip.compress(ITEM, mtime=0), "unknown-framing", "starts with 1f 8b", b"a"),
    "an erasure": Case(ERASURE, "unknown-schema", "fingerprint 441af1ce79229dc1", b"a"),
    "over 64 KiB": Case(encode_item(Item("a", "t" * 66_000)), "oversized", "66021 bytes;", b"a"),
    "cut": Case(ITEM[:-1], "malformed", "breaks at attributes", b"a"),
    "a byte after the end": Case(ITEM + b"\0", "malformed", "1 bytes after the record's end", b"a"),
    "length -1": Case(ITEM[:10] + integer(-1), "malformed", "breaks at item_id", b"a"),
    "huge length": Case(ITEM[:10] + integer(2**62) + b"a", "malformed", "breaks at item_id", b"a"),
    "branch -1": Case(ITEM[:10] + text("a") + integer(-1) + text("t"), "malformed", "breaks at title", b"a"),
    "neither available nor not": Case(_item(available=b"\2"), "malformed", "breaks at available", b"a"),
    "2^60 categories": Case(_item(categories=integer(2**60)), "malformed", "breaks at categories", b"a"),
    "-2^63 categories": Case(_item(categories=integer(-(2**63)) + NULL), "malformed", "breaks at categories", b"a"),
    "title that is no text": Case(
        ITEM[:10] + text("a") + some(text(b"\xff")) + b"\0\0\1\0\0", "malformed", "UnicodeDecodeError", b"a"
    ),
    "price NaN": Case(_item(price=some(double(math.nan))), "bad-number", "price is nan", b"a"),
    "price infinite": Case(_item(price=some(double(math.inf))), "bad-number", "price is inf", b"a"),
    "price negative": Case(_item(price=some(double(-1))), "bad-number", "price is -1.0", b"a"),
}

ERASURES = {
    "key of another": Case(ERASURE, "wrong-key", "key b'b' is not user_id", b"b"),
    "no key": Case(ERASURE, "wrong-key", "an erasure needs user_id as its key", None),
    "nothing at all": Case(None, "wrong-key", "an erasure needs", None),
    "empty key": Case(None, "wrong-key", "an erasure needs", b""),
    "key that is no text": Case(None, "bad-id", "the key is not UTF-8", b"\xff"),
    "key with a line feed": Case(None, "bad-id", "the key has control characters", b"a\nb"),
    "long key": Case(None, "bad-id", "the key has 257 bytes;", b"x" * 257),
    "empty value": Case(b"", "empty", "no value", b"a"),
    "text": Case(b"forget me", "unknown-framing", "starts with 66 6f 72 67;", b"a"),
    "an item": Case(ITEM, "unknown-schema", "fingerprint fa508708d7424809", b"a"),
    "cut": Case(ERASURE[:-1], "malformed", "breaks at requested_at", b"a"),
    "a byte after the end": Case(ERASURE + b"\0", "malformed", "1 bytes after the record's end", b"a"),
    "branch -1": Case(ERASURE[:-1] + integer(-1) + integer(1), "malformed", "breaks at requested_at", b"a"),
    "over 64 KiB": Case(encode_erasure("a" * 70_000), "oversized", "70014 bytes;", b"a"),
}


def _release(version: bytes = text("v"), stage: bytes = integer(2), percent: bytes = integer(100)) -> bytes:
    return RELEASE[:10] + version + text("u") + text("d") + stage + percent + integer(1) + NULL + integer(0) * 2


RELEASES = {
    "no value": Case(None, "empty", "no value"),
    "nothing in it": Case(b"", "empty", "no value"),
    "a path": Case(b"/releases/v", "unknown-framing", "starts with 2f 72 65 6c;"),
    "an item": Case(ITEM, "unknown-schema", "fingerprint fa508708d7424809"),
    "cut": Case(RELEASE[:-2], "malformed", "breaks at sequence"),
    "a byte after the end": Case(RELEASE + b"\0", "malformed", "1 bytes after the record's end"),
    "stage 3": Case(_release(stage=integer(3)), "malformed", "breaks at stage"),
    "stage -1, which is not full": Case(_release(stage=integer(-1)), "malformed", "breaks at stage"),
    "101 percent": Case(_release(percent=integer(101)), "bad-number", "percent is 101"),
    "-1 percent": Case(_release(percent=integer(-1)), "bad-number", "percent is -1"),
    "version of nothing": Case(_release(version=text("")), "bad-id", "version has 0 bytes;"),
    "version with a line feed": Case(_release(version=text("v\n")), "bad-id", "version has control characters"),
    "version of 257 bytes": Case(_release(version=text("v" * 257)), "bad-id", "version has 257 bytes;"),
}
