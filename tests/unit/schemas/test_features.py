"""What a model is fed, against values worked out on paper and against plain Python."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.click import ACTIONS, Click
from schemas.features import (
    COUNTER_NAMES,
    GAP_BUCKETS,
    SESSION_PAUSE_MS,
    Vocabulary,
    counters,
    history_inputs,
    model_inputs,
    time_bucket,
)
from schemas.hashes import hash_ids
from schemas.user_state import HISTORY, States, apply_events, empty_states
from tests.oracle import Oracle
from tests.unit.schemas.wire import NOW_MS, columns_of


def state_of(clicks: list[Click]) -> States:
    """The state of one user after these clicks."""
    states = empty_states(1)
    apply_events(states, np.zeros(len(clicks), np.int64), columns_of(clicks))
    return states


def gap_of(pause_ms: int) -> int:
    """The bucket of a pause between two events."""
    time = np.array([[NOW_MS, NOW_MS + pause_ms]])
    gap = history_inputs(np.ones((1, 2), np.int64), np.zeros((1, 2), np.uint8), time)["gap"]
    assert gap[0, 0] == 0
    return int(gap[0, 1])


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0, 1), (1, 2), (2, 2), (3, 3), (6, 3), (7, 4), (3600, 12), (86_400, 17)],
)
def test_a_gap_is_the_bit_length_of_its_seconds_plus_one(seconds: int, bucket: int) -> None:
    assert gap_of(seconds * 1000) == bucket
    assert gap_of(seconds * 1000 + 999) == bucket


@pytest.mark.parametrize("power", range(1, 40))
def test_a_gap_changes_its_bucket_exactly_at_powers_of_two(power: int) -> None:
    seconds = 2**power - 1
    assert gap_of((seconds - 1) * 1000) == min(power, GAP_BUCKETS - 1)
    assert gap_of(seconds * 1000) == min(power + 1, GAP_BUCKETS - 1)


def test_a_gap_never_runs_backwards() -> None:
    assert gap_of(-5000) == 1


def test_empty_places_and_the_first_event_are_padding() -> None:
    time = np.array([[0, 0, NOW_MS, NOW_MS + 2000]])
    inputs = history_inputs(np.array([[9, 9, 3, 0]]), np.array([[7, 7, 0, 2]], np.uint8), time)
    assert inputs["item_index"].tolist() == [[0, 0, 3, 0]]
    assert inputs["action"].tolist() == [[0, 0, 1, 3]]
    assert inputs["gap"].tolist() == [[0, 0, 0, 2]]
    assert {name: values.dtype for name, values in inputs.items()} == dict.fromkeys(inputs, np.dtype(np.int64))


def test_inputs_of_an_event_do_not_depend_on_later_ones() -> None:
    chance = np.random.default_rng(1)
    time = NOW_MS + np.cumsum(chance.integers(0, 10**7, (3, 20)), axis=1)
    item, action = chance.integers(0, 9, (3, 20)), chance.integers(0, 8, (3, 20)).astype(np.uint8)
    whole = history_inputs(item, action, time)
    for length in (1, 7, 19):
        part = history_inputs(item[:, :length], action[:, :length], time[:, :length])
        for name, values in part.items():
            if name != "age":
                assert values.tolist() == whole[name][:, :length].tolist()
        # An age is what its name says: it grows with the newest event, here the last of `length`.
        now = time[:, length - 1 : length]
        assert part["age"].tolist() == time_bucket(now - time[:, :length]).tolist()


def test_a_vocabulary_counts_from_one_in_the_order_it_was_given() -> None:
    ids = ["pear", "apple", "商品", "fig"]
    vocabulary = Vocabulary(ids)
    assert (vocabulary.ids, vocabulary.size) == (ids, 4)
    assert vocabulary.index_of(hash_ids(ids)).tolist() == [1, 2, 3, 4]
    assert vocabulary.index_of(hash_ids(["fig", "kiwi", "pear", ""])).tolist() == [4, 0, 1, 0]


def test_an_index_has_the_shape_of_what_was_asked() -> None:
    asked = hash_ids(["a", "b", "c", "z", "c", "a"]).reshape(3, 2)
    assert Vocabulary(["c", "b", "a"]).index_of(asked).tolist() == [[3, 2], [1, 0], [1, 3]]


def test_an_empty_place_and_an_empty_vocabulary_know_nothing() -> None:
    nothing = np.zeros((2, 3), np.uint64)
    assert Vocabulary(["a"]).index_of(nothing).tolist() == [[0] * 3] * 2
    assert Vocabulary([]).index_of(hash_ids(["a", "b"])).tolist() == [0, 0]


@given(
    st.lists(st.text(max_size=6), unique=True, max_size=30),
    st.lists(st.text(max_size=6), max_size=10),
)
def test_a_vocabulary_is_a_plain_look_up(ids: list[str], asked: list[str]) -> None:
    place = {item: n for n, item in enumerate(ids, 1)}
    assert Vocabulary(ids).index_of(hash_ids(asked)).tolist() == [place.get(item, 0) for item in asked]


def named(states: States) -> dict[str, float]:
    """The counters of the first user by name, before their logarithm."""
    return dict(zip(COUNTER_NAMES, np.expm1(counters(states)[0]).round(3).tolist(), strict=True))


def test_counters_have_their_names_once_each() -> None:
    assert len(set(COUNTER_NAMES)) == len(COUNTER_NAMES) == 3 * len(ACTIONS) + 3
    assert COUNTER_NAMES[0] == "hour_view"
    assert COUNTER_NAMES[-3:] == ("history_events", "session_events", "session_seconds")


def test_counters_of_a_short_history_by_hand() -> None:
    pause = SESSION_PAUSE_MS
    clicks = [
        Click("1", "u", "i", NOW_MS - 3 * 86_400_000, "PURCHASE"),
        Click("2", "u", "i", NOW_MS - 2 * pause - 1, "VIEW"),
        Click("3", "u", "i", NOW_MS - pause, "VIEW"),
        Click("4", "u", "i", NOW_MS, "CART"),
    ]
    got = {name: value for name, value in named(state_of(clicks)).items() if value}
    assert got == {
        "hour_view": 1,
        "hour_cart": 1,
        "day_view": 2,
        "day_cart": 1,
        "week_view": 2,
        "week_cart": 1,
        "week_purchase": 1,
        "history_events": 4,
        # A pause of half an hour holds a session together, one of a millisecond more ends it.
        "session_events": 2,
        "session_seconds": 1800,
    }


def test_a_user_without_events_has_no_counts() -> None:
    assert counters(empty_states(2)).tolist() == [[0.0] * len(COUNTER_NAMES)] * 2
    assert counters(empty_states(1)).dtype == np.float32


def test_a_session_is_no_longer_than_the_history() -> None:
    clicks = [Click(f"e{n}", "u", "i", NOW_MS + n * 1000) for n in range(HISTORY + 20)]
    got = named(state_of(clicks))
    assert (got["history_events"], got["session_events"], got["session_seconds"]) == (
        HISTORY,
        HISTORY,
        HISTORY - 1,
    )


@given(st.integers(0, 2**32), st.integers(1, 120))
def test_counters_are_those_of_plain_python(seed: int, count: int) -> None:
    chance = random.Random(seed)
    time, clicks = NOW_MS, []
    for n in range(count):
        time += chance.choice((0, 1500, 60_000, SESSION_PAUSE_MS, SESSION_PAUSE_MS + 1, 5 * 3_600_000))
        clicks.append(Click(f"e{n}", "u", f"i{n % 7}", time, chance.choice(ACTIONS)))
    oracle = Oracle()
    for click in clicks:
        oracle.click(click)
    expected = [math.log1p(count) for count in oracle.counters("u")]
    chance.shuffle(clicks)
    assert counters(state_of(clicks))[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_model_is_fed_history_and_counters_of_the_state() -> None:
    states = state_of([Click("1", "u", "fig", NOW_MS, "LIKE"), Click("2", "u", "kiwi", NOW_MS + 4000, "VIEW")])
    inputs = model_inputs(states, Vocabulary(["pear", "fig"]))
    assert set(inputs) == {"item_index", "action", "gap", "age", "counters"}
    assert inputs["item_index"].tolist() == [[0] * (HISTORY - 2) + [2, 0]]
    assert inputs["action"].tolist() == [[0] * (HISTORY - 2) + [5, 1]]
    assert inputs["gap"].tolist() == [[0] * (HISTORY - 1) + [3]]
    assert inputs["age"].tolist() == [[0] * (HISTORY - 2) + [3, 1]]
    assert inputs["counters"].tolist() == counters(states).tolist()
