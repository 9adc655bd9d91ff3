from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from schemas.features import Vocabulary
from tests.unit.trainer.shop import START_MS, chain_clicks, clicks_of
from trainer.config import DAY_MS
from trainer.evaluate.arms import Arm, Contestant
from trainer.evaluate.harness import compete
from trainer.evaluate.neighbours import Neighbours, Parameters, choices
from trainer.evaluate.popularity import LastItem, Popularity, Window, recent_items, windows_for
from trainer.evaluate.protocols import Step, leave_one_out, period_moments, prequential, successive
from trainer.sequences import Histories, histories

ITEMS = 30
MAKERS: dict[str, Callable[[], Arm]] = {
    "popularity": lambda: Popularity(Window(), ITEMS),
    "popularity of days": lambda: Popularity(Window(span_ms=DAY_MS // 100), ITEMS),
    "popularity of events": lambda: Popularity(Window(events=20), ITEMS),
    "live popularity": lambda: Popularity(Window(span_ms=DAY_MS // 100, live=True), ITEMS),
    "live popularity of events": lambda: Popularity(Window(events=20, live=True), ITEMS),
    "last item": lambda: LastItem(ITEMS),
    "neighbours": lambda: Neighbours(ITEMS, "time"),
}


def walks(seed: int = 1) -> Histories:
    vocabulary = Vocabulary([f"i{n:03d}" for n in range(ITEMS)])
    return histories(chain_clicks(ITEMS, users=40, events=25, seed=seed), vocabulary, history=10)


def scrambled_from(events: Histories, place: int, seed: int) -> Histories:
    """The same events up to a place: whatever else is not older than its moment has other items and actions."""
    rng = np.random.default_rng(seed)
    own = (events.first == events.first[place]) & (np.arange(len(events)) >= place)
    hidden = own | ((events.first != events.first[place]) & (events.event_time >= events.event_time[place]))
    item = np.where(hidden, rng.integers(1, ITEMS + 1, len(events)), events.item_index)
    action = np.where(hidden, rng.integers(0, 8, len(events)), events.action).astype(np.uint8)
    return replace(events, item_index=item, action=action)


def caught_cheating(arm: Arm, step: Step) -> bool:
    """Whether the scores of an event depend on it or on what came after it."""
    for number, place in enumerate(step.places[:: max(1, len(step.places) // 25)].tolist()):
        at = np.array([place])
        honest = arm.scores(step.histories, at)
        if not np.array_equal(honest, arm.scores(scrambled_from(step.histories, place, number), at)):
            return True
    return False


@pytest.mark.parametrize("name", MAKERS)
def test_no_arm_looks_at_the_event_or_beyond(name: str) -> None:
    events = walks()
    for step in [*successive(events, 0.6), *prequential(events, period_moments(events, 0.5, None, 3, None))]:
        arm = MAKERS[name]()
        arm.learn(step.known, step.check)
        assert not caught_cheating(arm, step)


class Cheat:
    """Knows what comes: the event itself, or the one after it."""

    name = "cheat"

    def __init__(self, ahead: int) -> None:
        self.ahead = ahead

    def learn(self, known: Histories, check: object) -> None:
        pass

    def scores(self, histories: Histories, places: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        scores = np.zeros((len(places), ITEMS + 1), np.float32)
        scores[
            np.arange(len(places)), histories.item_index[np.minimum(places + self.ahead, histories.last[places])]
        ] = 1
        return scores


@pytest.mark.parametrize("ahead", [0, 1])
def test_an_arm_that_looks_is_caught(ahead: int) -> None:
    (step,) = successive(walks(), 0.6)
    assert caught_cheating(Cheat(ahead), step)


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_scored_together_does_not_matter(name: str) -> None:
    (step,) = successive(walks(), 0.6)
    arm = MAKERS[name]()
    arm.learn(step.known, step.check)
    together = arm.scores(step.histories, step.places)
    alone = np.concatenate([arm.scores(step.histories, step.places[n : n + 1]) for n in range(len(step.places))])
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    backwards = arm.scores(step.histories, step.places[::-1])[::-1]
    np.testing.assert_allclose(together, backwards, rtol=1e-6)


def sales() -> tuple[Histories, np.ndarray]:  # type: ignore[type-arg]
    """a sold three times long ago, b twice lately, c once after the cut; then u buys."""
    day = DAY_MS
    rows = [(f"x{n}", "a", START_MS + n) for n in range(3)]
    rows += [(f"y{n}", "b", START_MS + 10 * day + day // 2 + n) for n in range(2)]
    rows += [("u", "d", START_MS + 10 * day + day // 2), ("z", "c", START_MS + 12 * day)]
    rows += [("u", "a", START_MS + 12 * day + 5)]
    events = histories(clicks_of(rows), Vocabulary(["a", "b", "c", "d"]))
    return events, np.flatnonzero(events.event_time == START_MS + 12 * day + 5)


@pytest.mark.parametrize(
    ("window", "counts"),
    [
        (Window(), [3, 2, 0, 1]),
        (Window(span_ms=3 * DAY_MS), [0, 2, 0, 1]),
        (Window(events=4), [1, 2, 0, 1]),
        (Window(live=True), [3, 2, 1, 1]),
        (Window(span_ms=DAY_MS, live=True), [0, 0, 1, 0]),
        (Window(events=2, live=True), [0, 1, 1, 0]),
    ],
)
def test_windows_count_what_lies_in_them(window: Window, counts: list[int]) -> None:
    events, place = sales()
    arm = Popularity(window, 4)
    arm.learn(events.before(START_MS + 11 * DAY_MS), None)
    assert arm.scores(events, place)[0, 1:].tolist() == counts


def test_live_windows_are_for_times_alone() -> None:
    assert windows_for("place", live=True) == [Window()]
    assert not any(window.live for window in windows_for("time", live=False))
    assert sum(window.live for window in windows_for("time", live=True)) == len(windows_for("time", live=False))


def words(text: str) -> Histories:
    """One word a user, one letter an event, a minute apart; users an hour after each other."""
    rows = [
        (f"u{u}", item, START_MS + u * 3_600_000 + n * 60_000)
        for u, word in enumerate(text.split())
        for n, item in enumerate(word)
    ]
    return histories(clicks_of(rows), Vocabulary(list("abcdefgh")), history=10)


def test_what_followed_sooner_and_more_often_scores_higher() -> None:
    events = words("abc abd ba ax")
    arm = LastItem(8)
    arm.learn(events, None)
    scores = arm.scores(words("ae"), np.array([1]))[0]
    np.testing.assert_allclose(scores[[2, 3, 4]], [2.0, 0.5, 0.5], atol=2e-4)  # b twice, c and d at a distance of two
    assert scores[1] < 0.001  # nothing leads from a to a
    unknown = arm.scores(words("hg"), np.array([1]))[0]
    assert unknown[1] == unknown.max() > 0  # nothing followed h: the most popular item


def test_neighbours_by_hand() -> None:
    # Sessions, oldest to newest: abc, bd, ae, fg. The user has a, then b.
    events = words("abc bd ae fg")
    arm = Neighbours(8, "time")
    arm.learn(events, None)
    assert arm.name == Parameters().name
    scores = arm.scores(words("abh"), np.array([2]))[0]
    # Weights: b 2/2, a 1/2. Similarity: abc 1.5, bd 1, ae 0.5. Newest shared: b is 0 items old, a is 1 (× 0.9).
    # Items are in 1 session of 4: idf log 4; a and b in 2: log 2.
    votes = np.array(
        [1.5 * np.log(2) + 0.45 * np.log(2), 2.5 * np.log(2), 1.5 * np.log(4), np.log(4), 0.45 * np.log(4)]
    )
    np.testing.assert_allclose(scores[1:6], votes / votes.max(), atol=3e-6)
    assert (scores[6:] < 3e-6).all()


def test_only_the_most_recent_sessions_and_the_most_similar_neighbours_vote() -> None:
    assert voted(Parameters(sessions=2, neighbours=9, idf=False), "abc abd bae ag") == "abeg"
    assert voted(Parameters(sessions=2, neighbours=1, idf=False), "abc abd bae ag") == "abe"
    assert voted(Parameters(sessions=9, neighbours=2, idf=False), "abc abd bae ag") == "abde"
    assert voted(Parameters(idf=False, again=False), "abc abd bae ag") == "cdeg"


def voted(parameters: Parameters, text: str, user: str = "ab") -> str:
    """The items that get votes for a user with these items."""
    arm = Neighbours(8, "time", parameters)
    arm.learn(words(text), None)
    scores = arm.scores(words(user + "h"), np.array([len(user)]))[0]
    return "".join(np.array(list("abcdefgh"))[scores[1:] > 0.01])


def test_an_item_the_user_has_twice_counts_once() -> None:
    arm = Neighbours(8, "time", Parameters(idf=False))
    arm.learn(words("ac bd"), None)
    scores = arm.scores(words("abah"), np.array([3]))[0]
    np.testing.assert_allclose(scores[4] / scores[3], 2 / 3 * 0.9, atol=1e-5)


def test_a_very_long_session_is_cut() -> None:
    names = [f"i{n:03d}" for n in range(120)]
    rows = [("u", name, START_MS + n * 1000) for n, name in enumerate(names)]
    arm = Neighbours(120, "time", Parameters(idf=False))
    arm.learn(histories(clicks_of(rows), Vocabulary(names), history=10), None)
    user = histories(clicks_of([("v", names[60], START_MS), ("v", names[0], START_MS + 1)]), Vocabulary(names), 10)
    assert np.flatnonzero(arm.scores(user, np.array([1]))[0] > 0.01).tolist() == list(range(51, 101))


def test_a_pause_ends_a_session_only_where_it_should() -> None:
    minute = 60_000
    rows = [("u", "a", START_MS), ("u", "b", START_MS + minute), ("u", "c", START_MS + 40 * minute)]
    events = histories(clicks_of(rows), Vocabulary(list("abcdefgh")), history=10)
    found = {}
    for pauses in (True, False):
        arm = Neighbours(8, "time", Parameters(pauses=pauses, idf=False))
        arm.learn(events, None)
        found[pauses] = np.flatnonzero(arm.scores(words("ah"), np.array([1]))[0][1:] > 0.1).tolist()
    assert found == {True: [0, 1], False: [0, 1, 2]}


def test_parameters_are_chosen_on_the_check_events() -> None:
    (step,) = successive(walks(), 0.6)
    arm = Neighbours(ITEMS, "time")
    arm.learn(step.known, step.check)
    assert arm.name in {each.name for each in choices("time", repeats=False)}
    assert not any(each.pauses for each in choices("place", repeats=True))


def test_recent_items_are_newest_first_and_chosen_ones_alone() -> None:
    events = words("abcd")
    shown = replace(events, action=np.array([3, 3, 7, 3], np.uint8))
    assert recent_items(shown, np.array([1, 3]), 2).tolist() == [[1, 0], [2, 1]]


@pytest.mark.parametrize("name", ["last item", "neighbours"])
def test_arms_that_read_histories_beat_popularity_where_only_order_matters(name: str) -> None:
    contestants = [
        Contestant(
            "popularity", (lambda _: MAKERS["popularity"](), lambda _: MAKERS["live popularity"]()), seeded=False
        ),
        Contestant("other", (lambda _: MAKERS[name](),), seeded=False),
    ]
    events = walks()
    for steps in (lambda: leave_one_out(events), lambda: successive(events, 0.7)):
        popularity, other = compete(contestants, steps, ITEMS, (1, 2))
        assert other.groups["all"]["ndcg@10"] > 1.3 * popularity.groups["all"]["ndcg@10"]
