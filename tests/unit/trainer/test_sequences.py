import random
from dataclasses import replace

import numpy as np
import pytest

from schemas.click import ACTIONS, Click, decode_clicks, encode_click
from schemas.features import SESSION_PAUSE_MS, Vocabulary, model_inputs
from schemas.user_state import HISTORY, apply_events, empty_states
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer.collect import click_columns
from trainer.sequences import (
    Histories,
    histories,
    index_order,
    next_items,
    slices,
    windows_of_one_pass,
)

HOUR_MS = 3_600_000


def random_histories(users: int, seed: int, items: int = 500) -> Histories:
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for _ in range(int(rng.integers(1, 3 * HISTORY))):
            time = START_MS + int(rng.integers(0, 40)) * 1000
            rows.append((f"u{user:02d}", f"i{rng.integers(items)}", time))
    return histories(clicks_of(rows), Vocabulary([f"i{n}" for n in range(items)]))


def test_a_window_is_what_the_jobs_state_holds_at_that_moment() -> None:
    rng = np.random.default_rng(5)
    # Few distinct times: the order inside one moment is decided by the event hash.
    events = [
        Click(
            event_id=f"e{number}",
            user_id=f"u{rng.integers(3)}",
            item_id=f"i{rng.integers(30)}",
            event_time=START_MS + int(rng.integers(20)) * 1000,
            action=ACTIONS[rng.integers(len(ACTIONS))],
        )
        for number in range(400)
    ]
    vocabulary = Vocabulary([f"i{n}" for n in range(25)])  # the job meets items it does not know
    decoded, bad = decode_clicks(
        [encode_click(event) for event in events],
        [event.user_id.encode() for event in events],
        START_MS + 10**9,
    )
    assert bad == []
    states = empty_states(3)
    apply_events(states, np.array([int(user[1:]) for user in decoded.user_ids]), decoded)
    served = model_inputs(states, vocabulary)

    trained = histories(click_columns(decoded), vocabulary)
    learned = trained.inputs(np.unique(trained.last))

    assert set(learned) == set(served) == {"item_index", "action", "gap", "age", "counters"}
    for name, values in learned.items():
        assert values.tobytes() == served[name].tobytes(), name


@pytest.mark.parametrize("seed", range(3))
def test_the_state_after_every_event_is_what_the_trainer_reads(seed: int) -> None:
    """Bit for bit, counters and ages included, over pauses that matter to windows and sessions."""
    choose = random.Random(seed)
    pauses = (0, 1_500, 60_000, SESSION_PAUSE_MS, SESSION_PAUSE_MS + 1, 5 * HOUR_MS, 50 * HOUR_MS)
    vocabulary = Vocabulary([f"i{n}" for n in range(25)])
    events, time = [], START_MS
    for number in range(2 * HISTORY + 20):
        time += choose.choice(pauses)
        item, action = f"i{choose.randrange(30)}", choose.choice(ACTIONS)
        events.append(Click(f"e{number}", "u", item, time, action))
    decoded, _ = decode_clicks([encode_click(event) for event in events], [b"u"] * len(events), time + 1)
    trained = histories(click_columns(decoded), vocabulary)
    in_order = np.lexsort((decoded.event_hash, decoded.event_time))
    states = empty_states(1)
    for place, event in enumerate(in_order):
        one, _ = decode_clicks([encode_click(events[event])], [b"u"], time + 1)
        apply_events(states, np.zeros(1, np.int64), one)
        served, learned = model_inputs(states, vocabulary), trained.inputs(np.array([place]))
        for name, values in learned.items():
            assert values.dtype == served[name].dtype and values.tobytes() == served[name].tobytes(), (place, name)


def test_every_event_but_the_first_is_learned_exactly_once_a_pass() -> None:
    events = random_histories(users=30, seed=1, items=10**6)  # so many items that none repeats
    windows = windows_of_one_pass(events, np.random.default_rng(2))
    targets = events.targets(windows)
    learned = np.bincount((windows.newest[:, None] + np.arange(2 - HISTORY, 2))[targets > 0], minlength=len(events))
    expected = (np.arange(len(events)) != events.first) & (events.item_index > 0)
    assert learned.tolist() == expected.astype(int).tolist()


def test_a_target_is_the_very_next_event_of_the_same_user() -> None:
    events = histories(
        clicks_of([("a", "x", 1_000), ("b", "y", 2_000), ("a", "z", 3_000), ("a", "w", 4_000)]),
        Vocabulary(["w", "x", "y", "z"]),
    )
    windows = windows_of_one_pass(events, np.random.default_rng(0))
    inputs, targets = events.inputs(windows.newest)["item_index"], events.targets(windows)
    pairs = {(i, t) for i, t in zip(inputs.ravel().tolist(), targets.ravel().tolist(), strict=True) if t}
    assert pairs == {(2, 4), (4, 1)}  # x → z, z → w; b has a single event


def test_a_window_never_reaches_into_another_users_events() -> None:
    rows = [("a", "x", 1_000), ("a", "y", 2_000), ("b", "z", 3_000)]
    events = histories(clicks_of(rows), Vocabulary(["x", "y", "z"]))
    inputs = events.inputs(np.array([0, 1, 2]))
    assert inputs["item_index"][:, -3:].tolist() == [[0, 0, 1], [0, 1, 2], [0, 0, 3]]
    assert not inputs["item_index"][:, :-3].any()
    assert (inputs["action"] > 0).sum(axis=1).tolist() == [1, 2, 1]


def test_nothing_is_learned_from_what_the_history_already_shows() -> None:
    rows = [("a", item, 1_000 * n) for n, item in enumerate("xyxz", start=1)]
    events = histories(clicks_of(rows), Vocabulary(["x", "y", "z"]))
    targets = events.targets(windows_of_one_pass(events, np.random.default_rng(0)))
    assert sorted(targets[targets > 0].tolist()) == [2, 3]  # y and z, not x again


@pytest.mark.parametrize("action", ["DISLIKE", "IMPRESSION"])
def test_what_was_not_chosen_is_context_but_never_a_target(action: str) -> None:
    rows = [("a", "x", 1_000), ("a", "y", 2_000), ("a", "z", 3_000)]
    events = histories(clicks_of(rows, ACTIONS.index(action)), Vocabulary(["x", "y", "z"]))
    assert not events.targets(windows_of_one_pass(events, np.random.default_rng(0))).any()
    assert len(next_items(events, 0)) == 0
    assert events.inputs(np.array([2]))["item_index"][0, -3:].tolist() == [1, 2, 3]


def test_before_is_the_history_as_it_stood_then() -> None:
    events = random_histories(users=20, seed=3)
    moment = int(np.median(events.event_time))
    then = events.before(moment)
    assert len(then) == int((events.event_time < moment).sum())
    assert then.event_time.max() < moment
    users = np.unique(events.first[events.event_time < moment])
    assert then.user_count == len(users)
    last = np.unique(then.last)
    place = np.flatnonzero(events.event_time < moment)
    assert then.item_index[last].tolist() == events.item_index[place[last]].tolist()


def test_the_very_first_places_are_foreseen_like_all_others() -> None:
    # "No earlier event on this item" is place -1, which is not further back than a history before place 49.
    items = [f"i{n}" for n in range(6)]
    rows = [("a", item, 1_000 * n) for n, item in enumerate([*items, "i0"], start=1)]
    shown = histories(clicks_of(rows), Vocabulary(items), history=6)
    assert next_items(shown, 0).tolist() == [1, 2, 3, 4, 5]  # the second i0 is still in a history of six …
    assert next_items(replace(shown, history=5), 0).tolist() == [1, 2, 3, 4, 5, 6]  # … and not in one of five
    assert next_items(replace(shown, repeats=True), 0).tolist() == [1, 2, 3, 4, 5, 6]


def test_judged_events_have_a_history_and_are_new_to_it() -> None:
    rows = [("a", "x", 1_000), ("a", "y", 9_000), ("a", "x", 9_500), ("b", "y", 9_900)]
    events = histories(clicks_of(rows), Vocabulary(["x", "y"]))
    assert next_items(events, 9_000).tolist() == [1]  # x again is in a's ring, b has no history
    assert next_items(events, 9_001).tolist() == []


def test_known_items_keep_their_index_and_new_ones_follow() -> None:
    order = index_order(["m", "c"], catalogue=["a", "c"], clicked=["z", "m"])
    assert order == ["m", "c", "a", "z"]


def test_slices_hold_back_the_newest_events_only() -> None:
    times = np.random.default_rng(0).permutation(100_000).astype(np.int64)
    first = slices(times, None)
    assert first is not None
    assert (first.judge_from, first.stop_from) == (95_000, 94_000)
    later = slices(times, 90_000)  # 10 000 new events: a quarter judges, a twentieth stops
    assert later is not None
    assert (later.judge_from, later.stop_from) == (97_500, 97_000)
    assert slices(times, 99_500) is None
