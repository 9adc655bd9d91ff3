"""The trending list is the plain count of the window, before and after a restart."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from pyflink.datastream.state import MapStateDescriptor

from schemas.user_state import HOUR_MS
from streaming.popularity import Addition, OlderAddition
from streaming.trending import EVERY_MS, FOLD_AFTER, KEPT_ITEMS, CountTrending, Trending
from tests.unit.streaming.test_metrics import Counted

START = 490_000  # an hour since 1970


class Kept(dict[Any, Any]):
    """A MapState."""

    put = dict.__setitem__
    remove = dict.__delitem__


class Appended(list[Any]):
    """A ListState."""

    add = list.append


class Flink:
    """What Flink gives the operator: state that outlives it, a clock, and a timer service."""

    def __init__(self) -> None:
        self.hours, self.gone = Kept(), Kept()
        self.additions, self.metrics = Appended(), Counted()
        self.now_ms = 5000
        self.timers: list[int] = []

    def get_map_state(self, descriptor: MapStateDescriptor) -> Kept:
        return {"hours": self.hours, "gone": self.gone}[descriptor.name]

    def get_list_state(self, _: object) -> Appended:
        return self.additions

    def get_metrics_group(self) -> Counted:
        return self.metrics

    def timer_service(self) -> "Flink":
        return self

    def current_processing_time(self) -> int:
        return self.now_ms

    def register_processing_time_timer(self, when: int) -> None:
        self.timers.append(when)

    def start(self, hours: int = 3) -> CountTrending:
        """A new operator on the state as it is, as after a restart."""
        operator = CountTrending(hours)
        operator.open(self)
        return operator


def feed(operator: CountTrending, flink: Flink, *additions: Addition | OlderAddition) -> list[Trending]:
    return [out for addition in additions for out in operator.process_element1(addition, flink)]


def listed(operator: CountTrending, flink: Flink) -> Trending:
    (out,) = operator.on_timer(0, flink)
    assert isinstance(out, Trending)
    return out


def addition(hour: int, *counts: tuple[int, str, int]) -> Addition:
    """A micro-batch whose newest event lies 1 s into `hour`; counts of (hour, item, count)."""
    hours, items, amounts = map(list, zip(*counts, strict=True)) if counts else ([], [], [])
    return (START + hour) * HOUR_MS + 1000, [START + h for h in hours], items, amounts


def some_additions(seed: int, count: int) -> Iterator[Addition]:
    chance = random.Random(seed)
    hour = 0
    for _ in range(count):
        hour += chance.random() < 0.05
        some = [(hour - chance.randrange(5), f"i{chance.randrange(30)}", chance.randrange(1, 4)) for _ in range(3)]
        yield addition(hour, *some)


def plain(additions: list[Addition], hours: int) -> tuple[list[tuple[str, int]], int]:
    """Items with their counts, best first, ties by id; and the newest event."""
    newest = max(time for time, *_ in additions)
    counts: Counter[str] = Counter()
    for _, *columns in additions:
        for hour, item, count in zip(*columns, strict=True):
            if newest // HOUR_MS - hour < hours:
                counts[item] += count
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:KEPT_ITEMS], newest


@pytest.mark.parametrize("seed", range(3))
def test_the_list_is_the_plain_count_of_the_window(seed: int) -> None:
    flink = Flink()
    operator = flink.start()
    additions = list(some_additions(seed, 200))
    feed(operator, flink, *additions)
    got = listed(operator, flink)
    assert (list(zip(got.item_ids, got.counts, strict=True)), got.event_time) == plain(additions, 3)


@pytest.mark.parametrize("restarts_after", [1, 100, FOLD_AFTER - 1, FOLD_AFTER, FOLD_AFTER + 1, 2 * FOLD_AFTER + 7])
def test_after_a_restart_the_list_is_the_same(restarts_after: int) -> None:
    flink = Flink()
    operator = flink.start()
    additions = list(some_additions(9, restarts_after))
    feed(operator, flink, *additions)
    before = listed(operator, flink)
    again = flink.start()
    assert listed(again, flink) == before
    assert (list(zip(before.item_ids, before.counts, strict=True)), before.event_time) == plain(additions, 3)
    more = list(some_additions(10, 50))
    feed(again, flink, *more)
    assert listed(again, flink).counts == [count for _, count in plain(additions + more, 3)[0]]


def test_a_restart_keeps_the_newest_event_even_when_it_wanted_no_item() -> None:
    flink = Flink()
    operator = flink.start()
    feed(operator, flink, addition(0, (0, "a", 1)), *[addition(2)] * FOLD_AFTER)
    before = listed(operator, flink)
    assert before == Trending(["a"], [1], (START + 2) * HOUR_MS + 1000)
    assert listed(flink.start(), flink) == before


def test_an_hour_leaves_the_list_when_it_leaves_the_window() -> None:
    flink = Flink()
    operator = flink.start(hours=3)
    feed(operator, flink, addition(0, (0, "a", 5), (0, "b", 1)), addition(1, (1, "b", 2)))
    assert listed(operator, flink).counts == [5, 3]
    feed(operator, flink, addition(2, (2, "c", 1)))
    assert listed(operator, flink).item_ids == ["a", "b", "c"]
    feed(operator, flink, addition(3, (3, "c", 1)))
    assert listed(operator, flink)[:2] == (["b", "c"], [2, 2])
    feed(operator, flink, addition(99))
    assert listed(operator, flink)[:2] == ([], [])


def test_events_older_than_the_window_do_not_count() -> None:
    flink = Flink()
    operator = flink.start(hours=3)
    feed(operator, flink, addition(10, (10, "a", 1), (8, "b", 1), (7, "c", 9)))
    assert listed(operator, flink)[:2] == (["a", "b"], [1, 1])


def test_equal_counts_are_ordered_by_id() -> None:
    flink = Flink()
    operator = flink.start()
    feed(
        operator,
        flink,
        addition(0, *((0, item, 2) for item in ("pear", "fig", "商品", "apple")), (0, "z", 3)),
    )
    assert listed(operator, flink).item_ids == ["z", "apple", "fig", "pear", "商品"]


def test_the_list_holds_what_a_full_history_may_take_away_and_no_more() -> None:
    flink = Flink()
    operator = flink.start()
    feed(operator, flink, addition(0, *((0, f"i{n:03}", 1) for n in range(KEPT_ITEMS + 5))))
    assert listed(operator, flink).item_ids == [f"i{n:03}" for n in range(KEPT_ITEMS)]
    assert KEPT_ITEMS == 100


def test_folding_empties_the_additions_and_drops_old_hours() -> None:
    flink = Flink()
    operator = flink.start(hours=3)
    feed(operator, flink, *[addition(0, (0, "a", 1))] * FOLD_AFTER)
    assert (list(flink.additions), set(flink.hours)) == ([], {START})
    assert flink.hours[START][1] == {"a": FOLD_AFTER}
    feed(operator, flink, *[addition(4, (4, "b", 1))] * (FOLD_AFTER - 1))
    assert len(flink.additions) == FOLD_AFTER - 1
    feed(operator, flink, addition(4, (4, "b", 1)))
    assert (list(flink.additions), set(flink.hours)) == ([], {START + 4})
    assert flink.hours[START + 4][1] == {"b": FOLD_AFTER}


def test_additions_from_before_a_restart_count_towards_the_next_fold() -> None:
    flink = Flink()
    feed(flink.start(), flink, *[addition(0, (0, "a", 1))] * (FOLD_AFTER - 1))
    feed(flink.start(), flink, addition(0, (0, "a", 1)))
    assert list(flink.additions) == []
    assert flink.hours[START][1] == {"a": FOLD_AFTER}


def test_hours_that_hold_more_than_came_are_not_written_yet() -> None:
    flink = Flink()
    feed(flink.start(), flink, addition(0, *((0, f"i{n}", 1) for n in range(FOLD_AFTER + 1))))
    feed(flink.start(), flink, *[addition(0, (0, "a", 1))] * (FOLD_AFTER - 1))
    assert flink.additions == [], "all came since the last fold, which there was none"
    feed(flink.start(), flink, *[addition(0, (0, "b", 1))] * FOLD_AFTER)
    assert len(flink.additions) == FOLD_AFTER, "fewer than the hour's items"
    feed(flink.start(), flink, *[addition(0, (0, "b", 1))] * FOLD_AFTER)
    assert flink.additions == []
    assert flink.hours[START][1]["b"] == 2 * FOLD_AFTER


def test_state_and_additions_of_an_older_job_count_on() -> None:
    flink = Flink()
    newest = (START + 1) * HOUR_MS + 1000
    flink.hours.update({START: (START * HOUR_MS, {"a": 2}), START + 1: (newest - 500, {"b": 1})})
    older: OlderAddition = (newest, [(START, "a", 1), (START + 1, "c", 4)])
    flink.additions.extend([older, (newest, [])])
    assert listed(flink.start(), flink) == Trending(["c", "a", "b"], [4, 3, 1], newest)
    operator = flink.start()
    feed(operator, flink, older, addition(1, (1, "b", 9)))
    assert listed(operator, flink) == Trending(["b", "c", "a"], [10, 8, 4], newest)
    assert listed(flink.start(), flink) == listed(operator, flink)


def test_the_first_list_comes_at_once_and_later_ones_by_a_single_timer() -> None:
    flink = Flink()
    operator = flink.start()
    assert feed(operator, flink, addition(0)) == []
    assert flink.timers == [5000 + EVERY_MS]
    flink.timers.clear()
    again = flink.start()
    first = Trending(["a"], [1], START * HOUR_MS + 1000)
    assert feed(again, flink, addition(0, (0, "a", 1))) == [first]
    assert flink.timers == []
    assert feed(again, flink, addition(0, (0, "b", 2)), addition(0, (0, "b", 2))) == []
    assert flink.timers == [5000 + EVERY_MS]
    assert listed(again, flink)[:2] == (["b", "a"], [4, 1])
    feed(again, flink, addition(0, (0, "c", 1)))
    assert flink.timers == [5000 + EVERY_MS] * 2
    assert flink.metrics.standing["trending_lists"] == 2
    assert flink.metrics.standing["trending_items"] == 2


def test_an_item_that_is_not_available_is_not_listed_and_comes_back_with_its_count() -> None:
    flink = Flink()
    operator = flink.start()
    feed(operator, flink, addition(0, (0, "a", 5), (0, "b", 3)))
    assert list(operator.process_element2({"a": False, "b": True}, flink)) == []
    assert flink.timers, "a new list is due"
    assert listed(operator, flink).item_ids == ["b"]
    assert listed(flink.start(), flink).item_ids == ["b"], "a restart remembers"
    operator = flink.start()
    assert list(operator.process_element2({"a": True}, flink)) == []
    assert listed(operator, flink)[:2] == (["a", "b"], [5, 3])
