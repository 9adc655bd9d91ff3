"""Dead items leave the model, new ones come in, and what is not available stands for nobody's wrong answer."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.unit.trainer.shop import START_MS, clicks_of
from trainer.catalogue import catalogue_of
from trainer.collect import ITEM_COLUMNS
from trainer.config import DAY_MS, Plan, Settings, plan
from trainer.parts import CLICK_COLUMNS

NOW = START_MS + 400 * DAY_MS


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    settings = Settings(trainer={"data": tmp_path, "releases": tmp_path, "gone_days": 10, "idle_days": 100})
    return plan(settings)


def words(*rows: tuple[str, str | None, bool, bool]) -> pl.DataFrame:
    """A catalogue of (item, title, available, gone)."""
    return pl.DataFrame(
        [(item, title, [], None, available, None, gone) for item, title, available, gone in rows],
        schema=ITEM_COLUMNS,
        orient="row",
    )


def clicked(**days_ago: float) -> pl.DataFrame:
    """Clicks on items, so many days before the newest click of all, which is on "today"."""
    rows = [("u", item, NOW - int(days * DAY_MS)) for item, days in days_ago.items()]
    return clicks_of([*rows, ("u", "today", NOW)])


HERE, OUT, GONE = (True, False), (False, False), (False, True)


def test_served_items_keep_their_order_and_new_ones_follow(planned: Plan) -> None:
    stored = words(("c", None, *HERE), ("m", None, *HERE), ("b", None, *HERE))
    known = catalogue_of(["m", "c"], stored, clicked(z=1), planned)
    assert known.vocabulary.ids == ["m", "c", "b", "today", "z"]


@pytest.mark.parametrize("state", [OUT, GONE])
def test_what_the_catalogue_took_out_leaves_when_nobody_clicks_it_any_more(
    planned: Plan, state: tuple[bool, bool]
) -> None:
    stored = words(("early", None, *state), ("late", None, *state), ("never", None, *state), ("here", None, *HERE))
    known = catalogue_of(["here", "early", "never", "late"], stored, clicked(early=10.1, late=9.9), planned)
    assert known.vocabulary.ids == ["here", "late", "today"]


def test_an_item_that_is_there_stays_without_a_click(planned: Plan) -> None:
    stored = words(("unclicked", None, *HERE), ("old", None, *HERE))
    known = catalogue_of([], stored, clicked(old=399), planned)
    assert known.vocabulary.ids == ["old", "today", "unclicked"]


def test_without_a_catalogue_items_leave_when_nobody_clicks_them_any_more(planned: Plan) -> None:
    served = ["early", "late", "never"]
    known = catalogue_of(served, words(), clicked(early=100.1, late=99.9), planned)
    assert known.vocabulary.ids == ["late", "today"]


def test_what_left_comes_back_as_a_new_item(planned: Plan) -> None:
    stored = words(("a", None, *GONE), ("b", None, *HERE))
    assert catalogue_of(["a", "b"], stored, clicked(), planned).vocabulary.ids == ["b", "today"]
    back = words(("a", None, *HERE), ("b", None, *HERE))
    assert catalogue_of(["b", "today"], back, clicked(), planned).vocabulary.ids == ["b", "today", "a"]
    assert catalogue_of(["b", "today"], stored, clicked(a=0.5), planned).vocabulary.ids == ["b", "today", "a"]


def test_live_are_items_that_can_be_recommended_now(planned: Plan) -> None:
    stored = words(("here", "Here", *HERE), ("out", "Out", *OUT), ("gone", None, *GONE))
    known = catalogue_of(["out", "here"], stored, clicked(out=1, gone=2, stranger=3), planned)
    assert known.vocabulary.ids == ["out", "here", "gone", "stranger", "today"]
    # Nobody said that a stranger to the catalogue is not to be had.
    assert known.live.tolist() == [False, False, True, False, True, True]
    assert known.titles == ["Out", "Here", "", "", ""]


def test_days_count_back_from_the_newest_click_and_not_from_today(planned: Plan) -> None:
    # An old log replayed: by the clock on the wall everything in it would be dead.
    known = catalogue_of([], words(("x", None, *GONE)), clicked(x=9), replace(planned, idle_days=1))
    assert known.vocabulary.ids == ["today", "x"]


def test_nothing_at_all_is_an_empty_catalogue(planned: Plan) -> None:
    known = catalogue_of([], words(), pl.DataFrame(schema=CLICK_COLUMNS), planned)
    assert (known.vocabulary.ids, known.titles, known.live.tolist()) == ([], [], [False])
