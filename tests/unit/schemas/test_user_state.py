"""A state depends on the events alone: not on their order, batches, or how often they come."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.click import ACTIONS, Click
from schemas.hashes import hash_ids
from schemas.user_state import (
    EVENT,
    HISTORY,
    HOUR_MS,
    LAYOUT,
    RING_START,
    WINDOWS,
    Applied,
    States,
    apply_events,
    dump_states,
    empty_states,
    history,
    load_states,
    window_counts,
)
from tests.unit.schemas.wire import NOW_MS, columns_of

GOLDEN = Path(__file__).parents[2] / "golden"
USERS = ("ann", "bob", "cy")
DAY_MS = 24 * HOUR_MS


def some_clicks(chance: random.Random, count: int, span_ms: int = 9 * DAY_MS) -> list[Click]:
    """Events of three users, many at the same moment, over more than the longest window."""
    moments = [NOW_MS + chance.randrange(span_ms) for _ in range(max(1, count // 2))]
    return [
        Click(
            f"e{n}",
            chance.choice(USERS),
            f"i{chance.randrange(9)}",
            chance.choice(moments),
            chance.choice(ACTIONS),
        )
        for n in range(count)
    ]


def apply(records: dict[str, bytes], batch: Sequence[Click]) -> Applied:
    """One micro-batch, as the job does it: read, add, keep."""
    clicks = columns_of(batch)
    users = sorted(set(clicks.user_ids))
    states = load_states([records.get(user) for user in users])
    applied = apply_events(states, np.array([users.index(user) for user in clicks.user_ids]), clicks)
    records.update(zip(users, dump_states(states), strict=True))
    return applied


def replay(*batches: Sequence[Click]) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    for batch in batches:
        if batch:
            apply(records, batch)
    return records


def cut(clicks: Sequence[Click], chance: random.Random) -> list[Sequence[Click]]:
    edges = sorted(chance.randrange(len(clicks) + 1) for _ in range(chance.randrange(6)))
    return [clicks[a:b] for a, b in zip([0, *edges], [*edges, len(clicks)], strict=True)]


def in_order(clicks: Sequence[Click]) -> list[Click]:
    return sorted(clicks, key=lambda c: (c.event_time, int(hash_ids([c.event_id])[0])))


def counted(state: States) -> dict[str, list[int]]:
    """By window: how often each action was counted for the first user."""
    return {window.name: counts for window, counts in zip(WINDOWS, window_counts(state)[0].tolist(), strict=True)}


def plain_counts(clicks: Sequence[Click]) -> dict[str, list[int]]:
    """By window: how often each action lies in the buckets that end with the newest event."""
    newest = max(c.event_time for c in clicks)
    counts = {}
    for window in WINDOWS:
        within = [c for c in clicks if c.event_time // window.width_ms > newest // window.width_ms - window.buckets]
        counted = Counter(c.action for c in within)
        counts[window.name] = [counted[action] for action in ACTIONS]
    return counts


@given(st.integers(0, 2**32), st.integers(1, 300))
def test_any_order_and_any_batches_end_in_the_same_bytes(seed: int, count: int) -> None:
    chance = random.Random(seed)
    clicks = some_clicks(chance, count)
    expected = replay(clicks)
    shuffled = chance.sample(clicks, len(clicks))
    assert replay(*cut(shuffled, chance)) == expected
    assert replay(in_order(clicks)) == expected


@given(st.integers(0, 2**32), st.integers(1, 300))
def test_ring_and_counters_are_those_of_plain_python(seed: int, count: int) -> None:
    chance = random.Random(seed)
    clicks = some_clicks(chance, count)
    records = replay(*cut(clicks, chance))
    by_user = defaultdict(list)
    for click in clicks:
        by_user[click.user_id].append(click)
    assert records.keys() == by_user.keys()
    for user, known in by_user.items():
        state = load_states([records[user]])
        newest = in_order(known)[-HISTORY:]
        empty = [0] * (HISTORY - len(newest))
        assert history(state, "item")[0].tolist() == empty + hash_ids([c.item_id for c in newest]).tolist()
        assert history(state, "event")[0].tolist() == empty + hash_ids([c.event_id for c in newest]).tolist()
        assert history(state, "event_time")[0].tolist() == empty + [c.event_time for c in newest]
        assert history(state, "action")[0].tolist() == empty + [ACTIONS.index(c.action) for c in newest]
        assert counted(state) == plain_counts(known)


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_the_same_events_again_change_nothing(seed: int, count: int) -> None:
    chance = random.Random(seed)
    clicks = some_clicks(chance, count)
    records = replay(clicks)
    before = dict(records)
    applied = apply(records, chance.sample(clicks, len(clicks)))
    assert applied.duplicate.all()
    assert not applied.late.any()
    assert records == before
    assert replay(clicks + clicks) == before


def test_of_two_events_with_one_id_the_first_stays() -> None:
    first, second = (
        Click("e", "ann", "i1", NOW_MS, "VIEW"),
        Click("e", "ann", "i2", NOW_MS + 9, "CART"),
    )
    for records in (replay([first, second]), replay([first], [second])):
        assert records == replay([first])
    assert apply({}, [first, second]).duplicate.tolist() == [False, True]


def test_a_known_event_that_comes_again_with_an_older_time_is_a_duplicate_and_not_late() -> None:
    records = replay([Click(f"e{n}", "ann", "i", NOW_MS + n) for n in range(HISTORY)])
    before = dict(records)
    applied = apply(records, [Click("e7", "ann", "i", NOW_MS - 1)])
    assert (applied.duplicate.tolist(), applied.late.tolist()) == ([True], [False])
    assert records == before


def test_one_event_id_may_belong_to_several_users() -> None:
    applied = apply({}, [Click("e", user, "i", NOW_MS) for user in USERS])
    assert not applied.duplicate.any()


def test_events_too_old_for_a_full_ring_are_late_and_counted_all_the_same() -> None:
    full = [Click(f"e{n}", "ann", f"i{n}", NOW_MS + n, "VIEW") for n in range(HISTORY)]
    records = replay(full)
    ring = history(load_states([records["ann"]]), "item").tolist()
    old = Click("old", "ann", "old", NOW_MS - 1, "CART")
    new = Click("new", "ann", "new", NOW_MS + 99, "CART")
    assert apply(records, [old]).late.tolist() == [True]
    state = load_states([records["ann"]])
    assert history(state, "item").tolist() == ring
    assert counted(state)["hour"][ACTIONS.index("CART")] == 1
    assert apply(records, [new]).late.tolist() == [False]
    assert history(load_states([records["ann"]]), "item")[0].tolist() == ring[0][1:] + hash_ids(["new"]).tolist()


def test_an_event_too_old_for_the_ring_counts_once_though_it_comes_twice_at_once() -> None:
    full = [Click(f"e{n}", user, "i", NOW_MS + n) for n in range(HISTORY) for user in ("ann", "bob")]
    records = replay(full)
    old = [Click("old", user, "i", NOW_MS - 1, "CART") for user in ("ann", "bob", "ann")]
    applied = apply(records, old)
    assert (applied.late.tolist(), applied.duplicate.tolist()) == ([True, True, False], [False, False, True])
    assert [counted(load_states([records[user]]))["hour"][ACTIONS.index("CART")] for user in ("ann", "bob")] == [1, 1]


def test_nothing_is_late_while_the_ring_has_room() -> None:
    records = replay([Click(f"e{n}", "ann", "i", NOW_MS + n) for n in range(HISTORY - 1)])
    assert apply(records, [Click("old", "ann", "old", NOW_MS - DAY_MS)]).late.tolist() == [False]
    assert history(load_states([records["ann"]]), "item")[0, 0] == hash_ids(["old"])[0]


def test_at_the_ring_s_oldest_moment_the_event_hash_decides_what_is_late() -> None:
    low, middle, high = sorted(("x", "y", "z"), key=lambda e: int(hash_ids([e])[0]))
    ring = [Click(middle, "ann", "i", NOW_MS)] + [
        Click(f"e{n}", "ann", "i", NOW_MS + 1 + n) for n in range(HISTORY - 1)
    ]
    assert apply(replay(ring), [Click(low, "ann", "i", NOW_MS)]).late.tolist() == [True]
    assert apply(replay(ring), [Click(high, "ann", "i", NOW_MS)]).late.tolist() == [False]


def test_counts_leave_the_window_bucket_by_bucket() -> None:
    hour = WINDOWS[0]
    start = NOW_MS // hour.width_ms * hour.width_ms
    records = replay([Click("first", "ann", "i", start, "VIEW")])
    seen = []
    for step in range(1, 8):
        apply(records, [Click(f"e{step}", "ann", "i", start + step * hour.width_ms, "VIEW")])
        seen.append(counted(load_states([records["ann"]]))["hour"][0])
    assert seen == [2, 3, 4, 5, 6, 6, 6]
    apply(records, [Click("far", "ann", "i", start + 365 * DAY_MS, "VIEW")])
    assert [counts[0] for counts in counted(load_states([records["ann"]])).values()] == [1, 1, 1]


def test_a_counter_stops_at_its_largest_value() -> None:
    records = replay([Click("e", "ann", "i", NOW_MS, "LIKE")])
    state = load_states([records["ann"]])
    like = ACTIONS.index("LIKE")
    start = 0
    for window in WINDOWS:
        state["count"][0, start + NOW_MS // window.width_ms % window.buckets, like] = 65_534
        start += window.buckets
    records["ann"] = dump_states(state)[0]
    apply(records, [Click(f"more{n}", "ann", "i", NOW_MS, "LIKE") for n in range(3)])
    state = load_states([records["ann"]])
    assert [counts[like] for counts in counted(state).values()] == [65_535] * 3


def test_users_of_a_batch_do_not_touch_each_other() -> None:
    chance = random.Random(1)
    clicks = some_clicks(chance, 200)
    together = replay(clicks)
    for user in USERS:
        assert replay([c for c in clicks if c.user_id == user]) == {user: together[user]}


def test_the_last_write_is_left_to_the_job() -> None:
    state = empty_states(1)
    state["last_write"] = 77
    records = {"ann": dump_states(state)[0]}
    apply(records, [Click("e", "ann", "i", NOW_MS)])
    assert load_states([records["ann"]])["last_write"].tolist() == [77]


def test_no_state_is_an_empty_one_and_what_is_dumped_is_loaded() -> None:
    states = load_states([None, None])
    assert states.tobytes() == empty_states(2).tobytes()
    assert states["layout"].tolist() == [LAYOUT, LAYOUT]
    states["last_write"] = (5, 6)
    assert load_states(dump_states(states))["last_write"].tolist() == [5, 6]
    assert [len(record) for record in dump_states(states)] == [RING_START] * 2


@pytest.mark.parametrize("layout", [0, LAYOUT + 1, 255])
def test_a_layout_of_another_version_is_refused(layout: int) -> None:
    record = bytes([layout]) + dump_states(empty_states(1))[0][1:]
    with pytest.raises(ValueError, match=rf"layout {layout}; this version reads 1 to {LAYOUT}"):
        load_states([None, record])


def test_a_record_cut_short_is_refused() -> None:
    whole = dump_states(load_states([replay([Click(f"e{n}", "ann", "i", NOW_MS + n) for n in range(3)])["ann"]]))[0]
    assert len(whole) == RING_START + 3 * EVENT.itemsize
    full = dump_states(load_states([replay([Click(f"e{n}", "ann", "i", NOW_MS + n) for n in range(HISTORY)])["ann"]]))[
        0
    ]
    for cut_short in (full[:-1], full[:1607], whole[:-1], whole[: RING_START - 1], whole + whole, b""):
        with pytest.raises(ValueError, match="no whole number of events"):
            load_states([cut_short])


# ── layouts as earlier releases wrote them: to be read by every later one ──────────


def golden(layout: int) -> tuple[list[Click], bytes]:
    events = json.loads((GOLDEN / "user_state.json").read_text())
    return [Click(**event) for event in events], (GOLDEN / f"user_state.v{layout}.bin").read_bytes()


@pytest.mark.parametrize("layout", range(1, LAYOUT + 1))
def test_a_record_of_any_layout_stays_readable(layout: int) -> None:
    clicks, record = golden(layout)
    assert record[0] == layout
    state = load_states([None, record])[1:]
    newest = in_order(_once(clicks))[-HISTORY:]
    assert history(state, "item")[0].tolist() == hash_ids([c.item_id for c in newest]).tolist()
    assert history(state, "event_time")[0].tolist() == [c.event_time for c in newest]
    assert history(state, "action")[0].tolist() == [ACTIONS.index(c.action) for c in newest]
    assert counted(state) == plain_counts(_once(clicks))
    assert state["last_write"].tolist() == [1_767_225_600_123_456]


@pytest.mark.parametrize("layout", range(1, LAYOUT + 1))
def test_a_record_of_any_layout_is_written_as_the_newest_one(layout: int) -> None:
    assert dump_states(load_states([golden(layout)[1]])) == [golden(LAYOUT)[1]]


def test_a_record_is_still_written_to_the_byte() -> None:
    clicks, record = golden(LAYOUT)
    state = load_states([replay(clicks[:40], clicks[40:])["golden"]])
    state["last_write"] = 1_767_225_600_123_456
    assert dump_states(state) == [record]
    assert (len(record), record[0]) == (1610, 2)


def _once(clicks: Sequence[Click]) -> list[Click]:
    return list({click.event_id: click for click in clicks}.values())
