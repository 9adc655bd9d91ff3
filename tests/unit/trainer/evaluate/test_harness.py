from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.errors import ConfigError
from schemas.features import Vocabulary
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer.evaluate.arms import Contestant
from trainer.evaluate.harness import compete
from trainer.evaluate.protocols import Step, prequential, successive
from trainer.fit import Check
from trainer.sequences import Histories, Ints, histories

ITEMS = ["a", "b", "c", "d"]
HOUR = 3_600_000


class Fixed:
    """Scores items by fixed numbers and remembers what it was taught."""

    def __init__(self, scores: list[float], name: str = "fixed") -> None:
        self.name = name
        self.fixed = np.array([0.0, *scores], np.float32)
        self.taught: list[int] = []

    def learn(self, known: Histories, check: Check | None) -> None:
        self.taught.append(len(known if check is None else check.histories))

    def scores(self, histories: Histories, places: Ints) -> NDArray[np.float32]:
        return np.tile(self.fixed, (len(places), 1))


def events() -> Histories:
    rows = [("u", "a", 0), ("u", "b", 1), ("v", "a", 2), ("u", "c", 3), ("v", "d", 4), ("w", "a", 4), ("w", "b", 5)]
    return histories(clicks_of([(user, item, START_MS + HOUR * time) for user, item, time in rows]), Vocabulary(ITEMS))


def one_cut() -> Iterator[Step]:
    return successive(events(), 0.4)  # after two of seven events: v's a, at 2, is learned by no one


def test_ranks_are_among_items_the_user_has_not_had() -> None:
    (run,) = compete([Contestant("fixed", (lambda _: Fixed([4, 3, 2, 1]),))], one_cut, 4, (1,))
    # c: a and b are masked → first. d: only a is masked, b and c are above → third. b of w: first.
    assert run.groups["all"]["events"] == 3
    assert run.groups["all"]["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1) / 3)


def test_new_items_and_new_users_are_counted_apart() -> None:
    (run,) = compete([Contestant("fixed", (lambda _: Fixed([4, 3, 2, 1]),))], one_cut, 4, (1,))
    assert {group: found["events"] for group, found in run.groups.items()} == {
        "all": 3,
        "known": 0,
        "new items": 2,  # c and d
        "new users": 2,  # v and w have no event before the cut
    }
    assert run.groups["new users"]["ndcg@10"] == pytest.approx((1 / 2 + 1) / 2)
    assert run.groups["new items"]["ndcg@10"] == pytest.approx((1 + 1 / 2) / 2)


def test_of_several_variants_the_best_one_competes() -> None:
    makers = (lambda _: Fixed([1, 2, 3, 4], "worse"), lambda _: Fixed([4, 3, 2, 1], "better"))
    (run,) = compete([Contestant("either", makers)], one_cut, 4, (1,))
    assert (run.arm, run.variant) == ("either", "better")


def test_an_arm_learns_period_after_period() -> None:
    arm = Fixed([4, 3, 2, 1])
    moments = np.array([START_MS + HOUR * n for n in (1, 3, 5, 6)])
    (run,) = compete([Contestant("fixed", (lambda _: arm,))], lambda: prequential(events(), moments), 4, (1,))
    assert arm.taught == [1, 3, 6]
    assert len(run.parts) == 3
    assert [part.figures["events"] for part in run.parts] == [1, 2, 1]
    assert [part.begins_ms for part in run.parts] == moments[:-1].tolist()


def test_seeds_are_run_where_they_matter() -> None:
    made: list[int] = []

    def make(seed: int) -> Fixed:
        made.append(seed)
        return Fixed([1, 2, 3, seed])

    runs = compete([Contestant("x", (make,)), Contestant("y", (make,), seeded=False)], one_cut, 4, (5, 6))
    assert made == [5, 6, 5]
    assert [(run.arm, run.seed) for run in runs] == [("x", 5), ("x", 6), ("y", 5)]


def test_nothing_to_foresee_is_an_error() -> None:
    rows = [(f"u{n}", "a", START_MS + n) for n in range(9)]
    alone = histories(clicks_of(rows), Vocabulary(ITEMS))
    with pytest.raises(ConfigError, match="no event to foresee"):
        compete([Contestant("fixed", (lambda _: Fixed([1, 2, 3, 4]),))], lambda: successive(alone, 0.5), 4, (1,))
