"""Every bad record is named by its reason, in words that help, and harms none of its neighbours."""

import struct
from collections.abc import Mapping

import pytest

from schemas.avro import MAX_VALUE_BYTES, BadRecord
from schemas.click import MAX_AHEAD_MS, Click, decode_clicks, encode_click
from schemas.erasure import decode_erasure
from schemas.ids import MAX_ID_BYTES
from schemas.item import Item, decode_item, encode_item
from schemas.release import decode_release
from tests.bad_input.cases import ERASURES, ITEMS, RELEASES, Case, double, events
from tests.unit.schemas.wire import NOW_MS, USER, integer, some, text, value

EVENTS = events()


def named(table: Mapping[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", table.values(), ids=table)


def agrees(verdict: object, case: Case, position: int) -> None:
    assert isinstance(verdict, BadRecord), verdict
    assert (verdict.position, verdict.reason) == (position, case.reason)
    assert verdict.detail.startswith(case.detail), verdict.detail
    assert len(verdict.detail) <= 200 and "\n" not in verdict.detail


@named(EVENTS)
def test_an_event_is_refused_between_two_that_are_not(case: Case) -> None:
    clicks, bad = decode_clicks([value(), case.value, value()], [USER, case.key, USER], NOW_MS)
    assert clicks.positions.tolist() == [0, 2]
    assert clicks.user_ids == ["user-1"] * 2
    [verdict] = bad
    agrees(verdict, case, 1)


def test_all_of_them_at_once_are_told_apart() -> None:
    cases = list(EVENTS.values())
    clicks, bad = decode_clicks([case.value for case in cases], [case.key for case in cases], NOW_MS)
    assert len(clicks) == 0
    for position, (case, verdict) in enumerate(zip(cases, bad, strict=True)):
        agrees(verdict, case, position)


@named(ITEMS)
def test_an_item_is_refused(case: Case) -> None:
    agrees(decode_item(case.value, case.key, 7), case, 7)


@named(ERASURES)
def test_an_erasure_is_refused(case: Case) -> None:
    agrees(decode_erasure(case.value, case.key, 7), case, 7)


@named(RELEASES)
def test_a_release_is_refused(case: Case) -> None:
    agrees(decode_release(case.value, 7), case, 7)


GOOD = {
    "exactly 64 KiB": value(context=integer(1) + text("k") + text("v" * (MAX_VALUE_BYTES - 49)) + integer(0)),
    "first moment of 2000": value(event_time=integer(946_684_800_000)),
    "five minutes ahead": value(event_time=integer(NOW_MS + MAX_AHEAD_MS)),
    "longest id": value(item_id=text("x" * MAX_ID_BYTES)),
    "any script, and a space": value(item_id=text("Bœuf 商品 🛒")),
    "nothing bought": value(value=some(double(0.0)), dwell_ms=some(integer(0))),
    "minus nothing": value(value=some(double(-0.0))),
    "the smallest price": value(value=some(double(5e-324))),
    "256 entries": value(context=integer(256) + b"\0\0" * 256 + integer(0)),
    "256 blocks": value(context=(integer(1) + b"\0\0") * 256 + integer(0)),
    "a time in ten bytes where eight do": value(event_time=b"\x80\xa0\xc7\xc6\xbf\xe6\x80\x80\x80\x00"),
}


@pytest.mark.parametrize("raw", GOOD.values(), ids=GOOD)
def test_what_is_just_allowed_is_a_row(raw: bytes) -> None:
    clicks, bad = decode_clicks([raw], [USER], NOW_MS)
    assert bad == []
    assert clicks.user_ids == ["user-1"]


def test_the_largest_value_is_64_kib() -> None:
    assert len(GOOD["exactly 64 KiB"]) == MAX_VALUE_BYTES == 65_536


def test_a_value_cut_at_any_byte_is_a_dead_letter() -> None:
    whole = encode_click(Click("event-1", "user-1", "商品", NOW_MS, "LIKE", 9, 1.5, "list", {"a": "b"}))
    values = [whole[:n] for n in range(len(whole) + 1)]
    clicks, bad = decode_clicks(values, [USER] * len(values), NOW_MS)
    assert clicks.positions.tolist() == [len(whole)]
    assert [record.position for record in bad] == list(range(len(whole)))
    reasons = ["empty"] + ["unknown-framing"] * 9 + ["malformed"] * (len(whole) - 10)
    assert [record.reason for record in bad] == reasons


def test_an_item_cut_at_any_byte_is_a_dead_letter() -> None:
    whole = encode_item(Item("a", "商品", ["x", "y"], 1.5, False, 9, {"k": "v"}))
    assert decode_item(whole, b"a") == Item("a", "商品", ["x", "y"], 1.5, False, 9, {"k": "v"})
    verdicts = [decode_item(whole[:n], b"a") for n in range(len(whole))]
    assert all(isinstance(verdict, BadRecord) for verdict in verdicts)


def test_numbers_of_an_item_that_are_just_allowed() -> None:
    for price in (0.0, struct.unpack("<d", b"\x01" + b"\0" * 7)[0], 1.7e308):
        assert decode_item(encode_item(Item("a", price=price)), b"a") == Item("a", None, [], price, True, None, {})
