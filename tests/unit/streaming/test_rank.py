"""The model's list where it knows one of the user's items, the trending list elsewhere."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.click import Click
from schemas.recommendation import LIST_LENGTH
from schemas.user_state import HISTORY, States, apply_events, empty_states
from streaming.model import LARGEST, Model, load
from streaming.rank import Fallback, rank
from streaming.trending import Trending
from streaming.wire import Lists
from tests.oracle import Oracle
from tests.releases import base_scores, make_release
from tests.unit.schemas.wire import NOW_MS, columns_of
from tests.unit.streaming.test_wire import FLOATS, PROTOCOL, TEXTS

ITEMS = [f"item-{n}" for n in range(12)]
FAVOURITES = ["item-7", "item-3", "item-9", "item-0"]
HITS = Trending(["item-1", "hit", "item-7", "other"], [9, 5, 4, 1], NOW_MS)
VERSION = "20260203-040506"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    release = make_release(tmp_path_factory.mktemp("release"), ITEMS, FAVOURITES, VERSION)
    return load(release, ["CPUExecutionProvider"], 1)


def all_open(items: Sequence[str] = ITEMS) -> NDArray[np.bool_]:
    return np.ones(len(items) + 1, np.bool_)


def clicks_of(*histories: Sequence[str]) -> list[Click]:
    return [
        Click(f"e{user}-{n}", f"user-{user}", item, NOW_MS + 60_000 * n)
        for user, items in enumerate(histories)
        for n, item in enumerate(items)
    ]


def states_of(*histories: Sequence[str]) -> States:
    """One user a history, an event a minute."""
    states = empty_states(len(histories))
    clicks = clicks_of(*histories)
    if clicks:
        apply_events(states, np.array([int(c.user_id.split("-")[1]) for c in clicks]), columns_of(clicks))
    return states


def ids(lists: Lists, user: int) -> list[str]:
    return list(TEXTS.from_binary(lists.item_ids[user], PROTOCOL))


def scores(lists: Lists, user: int) -> list[float]:
    return list(FLOATS.from_binary(lists.scores[user], PROTOCOL))


def test_a_list_is_what_the_model_says_of_the_user(model: Model) -> None:
    histories = [["item-3"], ["item-0", "item-11"], ["unheard-of", "item-7"]]
    lists = rank(model, all_open(), Fallback(HITS, set()), states_of(*histories))
    oracle = Oracle()
    for click in clicks_of(*histories):
        oracle.click(click)
    for user in range(3):
        items, expected, _ = oracle.row(f"user-{user}", ITEMS, FAVOURITES)
        assert ids(lists, user) == items
        assert scores(lists, user) == pytest.approx(expected, abs=1e-4)
    assert ids(lists, 0) == [i for i in FAVOURITES + [i for i in ITEMS if i not in FAVOURITES] if i != "item-3"]
    assert lists.source == ["model"] * 3
    assert lists.version == [VERSION] * 3


def test_own_and_unavailable_items_are_not_shown(model: Model) -> None:
    available = all_open()
    available[[1 + ITEMS.index(item) for item in ("item-7", "item-9")]] = False
    lists = rank(model, available, Fallback(HITS, set()), states_of(["item-3", "item-3"]))
    assert ids(lists, 0)[:3] == ["item-0", "item-1", "item-2"]
    assert not {"item-3", "item-7", "item-9"} & set(ids(lists, 0))
    assert len(ids(lists, 0)) == len(scores(lists, 0)) == len(ITEMS) - 3


def test_users_of_whom_the_model_knows_no_item_get_what_is_trending(model: Model) -> None:
    histories = [["unheard-of"], ["item-3"], [], ["hit", "gone"]]
    lists = rank(model, all_open(), Fallback(HITS, {"other"}), states_of(*histories))
    assert lists.source == ["trending", "model", "trending", "trending"]
    assert lists.version == ["", VERSION, "", ""]
    assert ids(lists, 0) == ids(lists, 2) == ["item-1", "hit", "item-7"]
    assert scores(lists, 0) == [9.0, 5.0, 4.0]
    assert ids(lists, 3) == ["item-1", "item-7"]
    assert scores(lists, 3) == [9.0, 4.0]
    assert ids(lists, 1)[0] == "item-7"


def test_without_a_model_everybody_gets_what_is_trending() -> None:
    lists = rank(None, np.ones(1, np.bool_), Fallback(HITS, set()), states_of(["item-7"], []))
    assert (lists.source, lists.version) == (["trending"] * 2, ["", ""])
    assert ids(lists, 0) == ["item-1", "hit", "other"]
    assert ids(lists, 1) == HITS.item_ids


def test_a_user_to_whom_the_model_can_show_nothing_gets_what_is_trending(model: Model) -> None:
    lists = rank(model, np.zeros(len(ITEMS) + 1, np.bool_), Fallback(HITS, set()), states_of(["item-3"]))
    assert (lists.source, lists.version, ids(lists, 0)) == (["trending"], [""], HITS.item_ids)


def test_with_nothing_trending_a_list_is_empty_but_there() -> None:
    lists = rank(None, np.ones(1, np.bool_), Fallback(Trending([], [], 0), set()), states_of(["a"]))
    assert (ids(lists, 0), scores(lists, 0), lists.source) == ([], [], ["trending"])


@pytest.mark.parametrize("count", [1, 2, LARGEST, 2 * LARGEST + 3])
def test_any_number_of_users_is_ranked_each_by_their_own_items(count: int, model: Model) -> None:
    # Every fifth user is unknown to the model, so that rows and users do not lie side by side.
    histories = [["unheard-of"] if user % 5 == 4 else [ITEMS[user % 12]] for user in range(count)]
    lists = rank(model, all_open(), Fallback(HITS, set()), states_of(*histories))
    order = FAVOURITES + [item for item in ITEMS if item not in FAVOURITES]
    for user, history in enumerate(histories):
        expected = HITS.item_ids if user % 5 == 4 else [item for item in order if item not in history]
        assert ids(lists, user) == expected


def test_nobody_is_ranked_for_nobody(model: Model) -> None:
    assert rank(model, all_open(), Fallback(HITS, set()), empty_states(0)) == Lists([], [], [], [])


def test_a_list_ends_at_its_length(tmp_path: Path) -> None:
    many = [f"m{n}" for n in range(LIST_LENGTH + 30)]
    wide = load(make_release(tmp_path / "wide", many, many[::-1]), ["CPUExecutionProvider"], 1)
    lists = rank(wide, all_open(many), Fallback(HITS, set()), states_of([many[-1]]))
    assert ids(lists, 0) == many[-2 : -2 - LIST_LENGTH : -1]
    assert np.diff(scores(lists, 0)).tolist() == pytest.approx([-1.0] * (LIST_LENGTH - 1), abs=1e-4)
    assert base_scores(many, many[::-1])[-1] == len(many)


def test_trending_fills_a_list_even_when_the_user_had_its_best_items() -> None:
    kept = [f"t{n}" for n in range(LIST_LENGTH + HISTORY)]
    fallback = Fallback(Trending(kept, list(range(len(kept), 0, -1)), NOW_MS), {"t60"})
    lists = rank(None, np.ones(1, np.bool_), fallback, states_of(kept[:HISTORY], kept[10:20], ["a"]))
    assert ids(lists, 0) == kept[HISTORY:60] + kept[61:]
    assert ids(lists, 1) == kept[:10] + kept[20:60]
    assert scores(lists, 1) == [float(len(kept) - n) for n in [*range(10), *range(20, 60)]]
    assert ids(lists, 2) == kept[:LIST_LENGTH]
