"""Popularity is a plain count of the window, in whatever order it comes, whenever it is folded or begun anew."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from schemas.user_state import HOUR_MS
from streaming.popularity import Addition, OlderAddition, Popularity

START = 490_000  # an hour since 1970
WINDOW = 3
ITEMS = [f"i{number}" for number in range(9)]


class Kept(dict[int, Any]):
    """A MapState."""

    put = dict.__setitem__
    remove = dict.__delitem__


def addition(hour: int, *counts: tuple[int, str, int]) -> Addition:
    """A micro-batch whose newest event lies 1 s into `hour`; counts of (hour, item, count)."""
    return (
        (START + hour) * HOUR_MS + 1000,
        [START + each for each, _, _ in counts],
        [item for _, item, _ in counts],
        [count for _, _, count in counts],
    )


def older(new: Addition) -> OlderAddition:
    return new[0], list(zip(*new[1:], strict=True))


def plain(additions: list[Addition], hidden: set[str], most: int) -> tuple[list[str], list[int]]:
    newest = max(time for time, *_ in additions) // HOUR_MS
    counts: Counter[str] = Counter()
    for _, *columns in additions:
        for hour, item, count in zip(*columns, strict=True):
            if newest - hour < WINDOW:
                counts[item] += count
    best = sorted((-count, item) for item, count in counts.items() if item not in hidden)[:most]
    return [item for _, item in best], [-count for count, _ in best]


# Newest events come in any order, hours up to five before the newest one; items more than once in a micro-batch.
counts = some.tuples(some.integers(0, 5), some.sampled_from(ITEMS), some.integers(1, 3))
additions = some.builds(
    lambda hour, many: addition(hour, *[(hour - back, item, count) for back, item, count in many]),
    some.integers(0, 12),
    some.lists(counts, max_size=6),
)
steps = some.lists(some.one_of(additions, some.sampled_from(["fold", "expire", "restart"])), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(steps, some.sets(some.sampled_from([*ITEMS, "never counted"])), some.integers(1, 10))
def test_the_best_are_those_of_a_plain_count(steps: list[Addition | str], hidden: set[str], most: int) -> None:
    kept = Kept()
    popularity = Popularity(WINDOW, kept)
    came: list[Addition] = []
    unfolded: list[Addition] = []
    for step in steps:
        if not isinstance(step, str):
            popularity.add(step)
            came.append(step)
            unfolded.append(step)
        elif step == "fold":
            popularity.fold()
            unfolded.clear()
        elif step == "expire":
            popularity.expire()
        else:
            popularity = Popularity(WINDOW, kept)
            for one in unfolded:
                popularity.add(older(one))
        if came:
            assert popularity.best(most, hidden) == plain(came, hidden, most)
            assert popularity.newest == max(time for time, *_ in came)
            assert len(popularity) == len(plain(came, set(), len(ITEMS))[0])


def test_the_map_is_what_jobs_before_wrote_and_read() -> None:
    kept = Kept({START: (START * HOUR_MS, {"a": 2, "b": 1})})
    popularity = Popularity(WINDOW, kept)
    popularity.add(addition(1, (0, "a", 1), (1, "c", 4)))
    assert popularity.best(9, ()) == (["c", "a", "b"], [4, 3, 1])
    popularity.fold()
    newest = (START + 1) * HOUR_MS + 1000
    assert kept == {START: (newest, {"a": 3, "b": 1}), START + 1: (newest, {"c": 4})}
    assert {type(count) for _, counts in kept.values() for count in counts.values()} == {int}


def test_the_newest_event_outlives_a_restart_even_when_all_counts_have_left_the_window() -> None:
    kept = Kept()
    popularity = Popularity(WINDOW, kept)
    popularity.add(addition(0, (0, "a", 1)))
    popularity.fold()
    popularity.add(addition(10))
    popularity.fold()
    again = Popularity(WINDOW, kept)
    again.add(addition(5, (5, "late", 1)))
    assert again.best(9, ()) == ([], [])


def test_a_fold_is_worth_it_once_as_much_came_as_its_hours_hold() -> None:
    popularity = Popularity(WINDOW, Kept())
    popularity.add(addition(0, *((0, f"i{number}", 1) for number in range(100))))
    popularity.add(addition(1, *((1, f"i{number}", 1) for number in range(10))))
    popularity.fold()
    popularity.add(addition(1, *((1, f"i{number}", 1) for number in range(9))))
    assert not popularity.worth_folding()
    popularity.add(addition(1, (1, "i1", 1)))
    assert popularity.worth_folding(), "the other hour's hundred are not written again"
    popularity.add(addition(1, (0, "i1", 1)))
    assert not popularity.worth_folding()


def test_items_whose_counts_have_left_cost_nothing_any_more() -> None:
    popularity = Popularity(WINDOW, Kept())
    for hour in range(40):
        popularity.add(addition(hour, *((hour, f"{hour}-{number}", 1) for number in range(500))))
        popularity.fold()
    assert len(popularity) == WINDOW * 500
    assert popularity.numbered <= 2 * WINDOW * 500


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_equal_counts_are_cut_off_by_id(most: int) -> None:
    popularity = Popularity(WINDOW, Kept())
    popularity.add(addition(0, *((0, item, 2) for item in ("pear", "fig", "商品", "apple"))))
    assert popularity.best(most, ())[0] == ["apple", "fig", "pear", "商品"][:most]
