import numpy as np
import pytest

from schemas.click import ACTIONS
from schemas.errors import ConfigError
from schemas.features import Vocabulary
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer.evaluate.protocols import Step, leave_one_out, period_moments, prequential, spans, successive
from trainer.sequences import Histories, histories

ITEMS = [f"i{n:02d}" for n in range(40)]
HOUR = 3_600_000


def shop(seed: int, users: int = 12, repeats: bool = False, history: int = 5) -> Histories:
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{user}", ITEMS[rng.integers(40)], START_MS + int(rng.integers(200)) * HOUR)
        for user in range(users)
        for _ in range(int(rng.integers(1, 40)))
    ]
    return histories(clicks_of(rows), Vocabulary(ITEMS), history, repeats)


def small(text: str, repeats: bool = False, action: int = 3) -> Histories:
    """Histories of words: one word a user, one letter an event, an hour apart."""
    words = text.split()
    rows = [(f"u{u}", item, START_MS + n * HOUR) for u, word in enumerate(words) for n, item in enumerate(word)]
    return histories(clicks_of(rows, action), Vocabulary(list("abcdefgh")), 3, repeats)


def letters(of: Histories) -> str:
    """The words again."""
    words = np.split(np.array(list("?abcdefgh"))[of.item_index], np.flatnonzero(np.diff(of.first)) + 1)
    return " ".join("".join(word) for word in words)


def targets_of(step: Step) -> str:
    return "".join(np.array(list("?abcdefgh"))[step.histories.item_index[np.sort(step.places)]])


def test_the_last_event_is_tested_and_the_one_before_checked() -> None:
    (step,) = leave_one_out(small("abcd efg ab a"))
    assert letters(step.known) == "ab e ab a"
    assert step.check is not None
    assert letters(step.check.histories) == "abc ef ab a"
    assert "".join(np.array(list("?abcdefgh"))[step.check.histories.item_index[step.check.places]]) == "cf"
    assert letters(step.histories) == "abcd efg ab a"
    assert targets_of(step) == "dg"
    assert step.learned.sum() == len(step.check.histories)
    assert not step.learned[step.places].any()


def test_a_last_event_the_user_had_already_is_no_target_and_left_out() -> None:
    (step,) = leave_one_out(small("abcda"))
    assert (letters(step.known), letters(step.histories), targets_of(step)) == ("ab", "abcd", "d")
    (step,) = leave_one_out(small("abcda", repeats=True))
    assert (letters(step.known), letters(step.histories), targets_of(step)) == ("abc", "abcda", "a")


def test_what_was_only_shown_is_never_tested() -> None:
    assert len(next(leave_one_out(small("abcd efg", action=ACTIONS.index("IMPRESSION")))).places) == 0
    assert len(next(successive(small("abcd efg", action=ACTIONS.index("DISLIKE")), 0.5)).places) == 0


def test_successive_learns_nothing_after_the_cut_and_tests_all_of_it() -> None:
    events = shop(1)
    (step,) = successive(events, 0.7)
    assert step.begins_ms is not None
    assert step.begins_ms == np.sort(events.event_time)[int(0.7 * len(events))]
    assert step.check is not None
    check_time = step.check.histories.event_time
    assert check_time.max() < step.begins_ms
    assert step.known.event_time.max() < check_time[step.check.places].min()
    assert len(step.check.histories) == (events.event_time < step.begins_ms).sum()
    assert step.learned.tolist() == (events.event_time < step.begins_ms).tolist()
    # Straight from the definition.
    expected = [
        place
        for place in range(len(events))
        if events.event_time[place] >= step.begins_ms
        and place > events.first[place]
        and events.item_index[place] not in events.item_index[events.first[place] : place]
    ]
    assert sorted(step.places.tolist()) == expected
    assert (np.diff(events.event_time[step.places]) >= 0).all()


def test_items_a_user_had_are_masked_over_the_whole_past() -> None:
    events = shop(2)
    (step,) = successive(events, 0.5)
    row, item = step.already_had(step.places)
    for number, place in enumerate(step.places.tolist()):
        assert item[row == number].tolist() == events.item_index[events.first[place] : place].tolist()
        assert events.item_index[place] not in item[row == number]


def test_a_served_model_masks_what_its_history_shows() -> None:
    events = shop(3)
    for step in prequential(events, period_moments(events, 0.5, None, 4, None)):
        row, item = step.already_had(step.places)
        own = step.histories
        for number, place in enumerate(step.places.tolist()):
            begin = max(own.first[place], place - 5)
            assert item[row == number].tolist() == own.item_index[begin:place].tolist()
            assert own.item_index[place] not in item[row == number]


def test_kept_repeats_are_targets_and_nothing_is_masked() -> None:
    events = shop(4, repeats=True)
    (step,) = successive(events, 0.5)
    assert step.begins_ms is not None
    late = (events.event_time >= step.begins_ms) & (events.first < np.arange(len(events)))
    assert len(step.places) == late.sum()
    assert len(step.already_had(step.places)[0]) == 0


def test_every_period_is_foreseen_before_it_is_learned() -> None:
    events = shop(5)
    moments = period_moments(events, 0.4, None, 6, None)
    steps = list(prequential(events, moments))
    assert len(steps) == 6
    before = 0
    for step, begins, ends in zip(steps, moments[:-1], moments[1:], strict=True):
        assert step.begins_ms == begins
        tested_at = step.histories.event_time[step.places]
        assert begins <= tested_at.min() <= tested_at.max() < ends
        assert step.histories.event_time.max() < ends
        assert step.known.event_time.max() < begins
        assert step.check is not None
        assert step.check.histories.event_time.max() < begins
        assert step.known_until_ms is not None
        assert before < step.known_until_ms, "only events of the newest period are held back to check by"
        before = begins
    # Together the periods test each later event once.
    assert sum(len(step.places) for step in steps) == len(next(prequential(events, moments[[0, -1]])).places)


def test_periods_have_the_same_length_from_the_share_on() -> None:
    events = shop(6)
    begin, end = np.sort(events.event_time)[int(0.5 * len(events))], events.event_time.max() + 1
    moments = period_moments(events, 0.5, None, 5, None)
    assert (moments[0], moments[-1], len(moments)) == (begin, end, 6)
    assert np.ptp(np.diff(moments)) <= 1
    days = period_moments(events, 0.5, 24 * HOUR, 0, None)
    assert not (days[:-1] % (24 * HOUR)).any()
    assert days[0] <= begin < days[1]
    assert end - days[-2] >= 12 * HOUR
    own = np.array([events.event_time.min(), START_MS + 90 * HOUR, START_MS + 150 * HOUR])
    assert period_moments(events, 0.001, None, 0, own).tolist() == [*own[1:], end]
    assert period_moments(events, 0.9, None, 0, own).tolist() == [end]


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 1.5])
def test_a_share_outside_of_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="no share"):
        list(successive(shop(1), share))


def test_nothing_before_the_cut_is_refused() -> None:
    events = histories(clicks_of([("a", "i01", START_MS), ("a", "i02", START_MS)]), Vocabulary(ITEMS))
    with pytest.raises(ConfigError, match="no event lies before"):
        list(successive(events, 0.5))


def test_spans_are_all_numbers_between() -> None:
    row, number = spans(np.array([3, 7, 5]), np.array([5, 7, 8]))
    assert (row.tolist(), number.tolist()) == ([0, 0, 2, 2, 2], [3, 4, 5, 6, 7])
