"""A micro-batch through `features`: what is kept, what goes on, and that blocks of users make no difference."""

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from pyflink.common import Row

from schemas.click import ACTIONS, Click, encode_click
from schemas.user_state import history, load_states
from streaming import features
from streaming.dead_letter import DEAD_LETTERS
from streaming.features import POPULARITY, Features, Updated
from tests.unit.streaming.test_metrics import Counted
from tests.unit.streaming.test_users import Kept

NOW_MS = int(time.time() * 1000)
CLICK, ERASURE = features.CLICK, features.ERASURE


class Context(Counted):
    """What Flink gives an operator, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = Kept()

    def get_map_state(self, descriptor: Any) -> Kept:
        return self.kept


class Job:
    """The operator, opened."""

    def __init__(self) -> None:
        self.context = Context()
        self.operator = Features(["clicks", "erasures"], None)
        self.operator.open(self.context)

    def take(self, records: Sequence[tuple[bytes | None, bytes | None, int]]) -> list[Any]:
        """A micro-batch of (key, value, kind)."""
        keys, values, kinds = (tuple(column) for column in zip(*records, strict=True))
        count = len(records)
        row = Row(keys, values, kinds, (0,) * count, tuple(range(count)), (NOW_MS,) * count)
        return list(self.operator.process_element(row, None))


def record(click: Click) -> tuple[bytes, bytes, int]:
    return click.user_id.encode(), encode_click(click), CLICK


def some(seed: int, count: int, users: int) -> list[Click]:
    chance = random.Random(seed)
    return [
        Click(
            f"e{chance.randrange(count * 2)}",
            f"u{chance.randrange(users)}",
            f"i{chance.randrange(50)}",
            NOW_MS - chance.randrange(10_000_000),
            chance.choice(ACTIONS),
        )
        for _ in range(count)
    ]


def updated(out: list[Any]) -> Updated:
    [one] = [value for value in out if isinstance(value, Updated)]
    return one


@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_blocks_of_users_make_no_difference(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = some(1, 600, users=90)
    whole, parts = Job(), Job()
    for start in range(0, 600, 200):
        batch = [record(click) for click in clicks[start : start + 200]]
        monkeypatch.setattr(features, "BLOCK", 10_000)
        expected = updated(whole.take(batch))
        monkeypatch.setattr(features, "BLOCK", block)
        found = updated(parts.take(batch))
        assert found.user_ids == expected.user_ids
        assert found.produced.tolist() == expected.produced.tolist()
        # Write times follow the clock; all else is the same.
        for one, other in zip(load_states(found.records), load_states(expected.records), strict=True):
            other["last_write"] = one["last_write"]
            assert one == other
    assert parts.context.standing["features_duplicates"] == whole.context.standing["features_duplicates"] > 0
    assert parts.context.standing["features_late"] == whole.context.standing["features_late"]


def test_what_goes_on_is_what_is_kept() -> None:
    job = Job()
    out = updated(job.take([record(click) for click in some(2, 300, users=30)]))
    assert dict(job.context.kept) == dict(zip(out.user_ids, out.records, strict=True))


def test_a_write_time_only_ever_grows() -> None:
    job = Job()
    last = 0
    for number in range(5):
        out = updated(job.take([record(Click(f"e{number}", "ann", "i", NOW_MS))]))
        [write_time] = load_states(out.records)["last_write"].tolist()
        assert write_time > last
        last = write_time


def test_users_with_nothing_new_are_neither_written_nor_passed_on() -> None:
    job = Job()
    clicks = [record(Click(f"e{n}", f"u{n}", "i", NOW_MS)) for n in range(3)]
    job.take(clicks)
    before = dict(job.context.kept)
    assert job.take(clicks) == []
    assert dict(job.context.kept) == before
    again = updated(job.take([*clicks, record(Click("new", "u1", "i", NOW_MS))]))
    assert again.user_ids == ["u1"]


def test_bad_records_go_aside_and_their_neighbours_on() -> None:
    job = Job()
    good = record(Click("e", "ann", "i", NOW_MS))
    out = job.take([(b"bob", b"nonsense", CLICK), good, (b"cy", None, CLICK), (b"dan", good[1], CLICK)])
    assert [tag for tag, _ in (pair for pair in out if isinstance(pair, tuple) and pair[0] is DEAD_LETTERS)] == (
        [DEAD_LETTERS] * 3
    )
    assert updated(out).user_ids == ["ann"]


def test_an_erasure_forgets_what_came_before_it_and_not_what_comes_after() -> None:
    job = Job()
    job.take([record(Click("e1", "ann", "i1", NOW_MS)), record(Click("e1", "bob", "i1", NOW_MS))])
    before = load_states([job.context.kept["ann"]])["last_write"][0]
    out = updated(
        job.take(
            [
                record(Click("e2", "ann", "i2", NOW_MS)),
                (b"ann", None, ERASURE),
                record(Click("e3", "ann", "i3", NOW_MS)),
                (b"bob", None, ERASURE),
            ]
        )
    )
    assert (out.user_ids, [user for user, _ in out.erased]) == (["ann"], ["bob"])
    assert job.context.kept.keys() == {"ann"}
    state = load_states(out.records)
    assert (history(state, "item") != 0).sum() == 1
    assert state["last_write"][0] > before


def test_a_clock_that_is_behind_refuses_no_current_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records say themselves when they were produced; what is ahead of that is refused by any clock."""
    monkeypatch.setattr("time.time", lambda: NOW_MS / 1000 - 3600)
    ahead = record(Click("e2", "bob", "i", NOW_MS + 3_600_000))
    out = Job().take([(b"cy", None, ERASURE), record(Click("e1", "ann", "i", NOW_MS)), ahead])
    assert updated(out).user_ids == ["ann"]
    assert [pair[0] for pair in out if isinstance(pair, tuple)].count(DEAD_LETTERS) == 1


def test_popularity_counts_what_was_wanted_by_hour() -> None:
    hour = 3_600_000
    clicks = [
        Click("e1", "ann", "i1", NOW_MS),
        Click("e2", "bob", "i1", NOW_MS),
        Click("e3", "bob", "i1", NOW_MS - hour),
        Click("e4", "bob", "i2", NOW_MS, "DISLIKE"),
        Click("e5", "bob", "i2", NOW_MS, "IMPRESSION"),
        Click("e6", "bob", "i3", NOW_MS - hour),
    ]
    [[_, (newest, *columns)]] = [
        value._values for tag, value in Job().take([record(c) for c in clicks])[:-1] if tag is POPULARITY
    ]
    assert newest == NOW_MS
    assert sorted(zip(*columns, strict=True)) == sorted(
        [(NOW_MS // hour, "i1", 2), (NOW_MS // hour - 1, "i1", 1), (NOW_MS // hour - 1, "i3", 1)]
    )
