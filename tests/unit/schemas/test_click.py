"""Every value on `clicks` becomes a row or a dead letter, once, and none harms another."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from schemas import click as module
from schemas.avro import published
from schemas.click import (
    ACTIONS,
    MAX_AHEAD_MS,
    Click,
    Clicks,
    decode_clicks,
    encode_click,
)
from tests.unit.schemas.wire import HEADER, NOW_MS, body, integer, some, text

LATEST = published("click_event").latest
# Without what an id may not hold: controls, odd separators, unassigned characters.
CLEAN = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)
CLICK = st.builds(
    Click,
    event_id=CLEAN,
    user_id=CLEAN,
    item_id=CLEAN,
    event_time=st.integers(module.EARLIEST_MS, NOW_MS + MAX_AHEAD_MS),
    action=st.sampled_from(ACTIONS),
    dwell_ms=st.none() | st.integers(0, 2**31 - 1),
    value=st.none() | st.floats(0, allow_infinity=False),
    request_id=st.none() | st.text(max_size=20),
    context=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4),
)
Row = tuple[int, str, str, str, int, str]


def rows_of(clicks: Clicks) -> list[Row]:
    """Position, event, user, item, time and action of each good record."""
    return list(
        zip(
            clicks.positions.tolist(),
            clicks.event_ids,
            clicks.user_ids,
            clicks.item_ids,
            clicks.event_time.tolist(),
            [ACTIONS[code] for code in clicks.action.tolist()],
            strict=True,
        )
    )


def row_of(position: int, click: Click) -> Row:
    return position, click.event_id, click.user_id, click.item_id, click.event_time, click.action


@given(st.lists(CLICK, max_size=12))
def test_what_a_producer_encodes_is_what_the_job_reads(clicks: list[Click]) -> None:
    decoded, bad = decode_clicks([encode_click(c) for c in clicks], [c.user_id.encode() for c in clicks], NOW_MS)
    assert bad == []
    assert rows_of(decoded) == [row_of(n, c) for n, c in enumerate(clicks)]


def test_hashes_are_those_of_the_ids() -> None:
    from schemas.hashes import hash_ids

    clicks = [Click(f"event-{n}", f"user-{n % 2}", "商品" * n, NOW_MS) for n in range(1, 5)]
    decoded, _ = decode_clicks([encode_click(c) for c in clicks], [c.user_id.encode() for c in clicks], NOW_MS)
    assert decoded.event_hash.tolist() == hash_ids([c.event_id for c in clicks]).tolist()
    assert decoded.user_hash.tolist() == hash_ids([c.user_id for c in clicks]).tolist()
    assert decoded.item_hash.tolist() == hash_ids([c.item_id for c in clicks]).tolist()


def test_the_bytes_of_version_1_never_change() -> None:
    click = Click("event-1", "user-1", "item-1", NOW_MS, "CART", 20, 2.5, "list-1", {"page": "home"})
    expected = body(
        action=integer(2),
        dwell_ms=some(integer(20)),
        value=some(struct.pack("<d", 2.5)),
        request_id=some(text("list-1")),
        context=integer(1) + text("page") + text("home") + integer(0),
    )
    assert encode_click(click) == HEADER + expected


def test_actions_keep_their_codes() -> None:
    assert ACTIONS == (
        "VIEW",
        "CLICK",
        "CART",
        "PURCHASE",
        "LIKE",
        "DISLIKE",
        "SHARE",
        "IMPRESSION",
    )
    assert tuple(LATEST["fields"][4]["type"]["symbols"]) == ACTIONS


def test_no_records_are_no_rows() -> None:
    clicks, bad = decode_clicks([], [], NOW_MS)
    assert (len(clicks), bad, clicks.item_ids) == (0, [], [])


def test_selected_rows_keep_their_order_and_their_texts() -> None:
    import numpy as np

    made = [Click(f"e{n}", f"u{n}", f"item-{n}", NOW_MS + n, ACTIONS[n]) for n in range(5)]
    clicks, _ = decode_clicks([encode_click(c) for c in made], [c.user_id.encode() for c in made], NOW_MS)
    assert rows_of(clicks.select(np.array([3, 1]))) == [row_of(3, made[3]), row_of(1, made[1])]
    assert rows_of(clicks.select(clicks.event_time > NOW_MS + 2)) == [
        row_of(3, made[3]),
        row_of(4, made[4]),
    ]
    assert clicks.texts(clicks.item, np.array([4, 0])) == ["item-4", "item-0"]
