"""Runs arms through the steps of a protocol: learn, score, mask, rank; and sums up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from trainer.config import TOP
from trainer.evaluate.arms import Arm, Contestant
from trainer.evaluate.metrics import Figures, figures, ranks_and_lists
from trainer.evaluate.protocols import Step
from trainer.progress import progress
from trainer.sequences import Ints, evenly

# Scores held at once, in events × items: 8 bytes each make 32 MB.
SCORES_AT_ONCE = 4_000_000
FEWEST_AT_ONCE, MOST_AT_ONCE = 16, 1024
# Test events, spread evenly, on which the best of several variants of an arm is found.
SAMPLE = 4_000
# Parts of equal size in which a single step in time is shown.
PARTS = 10

Steps = Callable[[], Iterator[Step]]


@dataclass(frozen=True)
class Part:
    """A period, or a part of the time of a single step."""

    begins_ms: int | None
    figures: Figures
    learn_seconds: float
    score_seconds: float


@dataclass(frozen=True)
class Run:
    """One arm with one seed. groups: figures of "all", "known", "new items" and "new users"."""

    arm: str
    variant: str
    seed: int
    groups: dict[str, Figures]
    parts: tuple[Part, ...]
    learn_seconds: float
    score_seconds: float


@dataclass(frozen=True)
class _Ranked:
    """E events of one step, ranked."""

    begins_ms: int | None
    event_time: Ints  # [E] ms
    rank: Ints  # [E]
    lists: Ints  # [E, TOP]
    new_item: NDArray[np.bool_]  # [E] nothing learned holds the item
    new_user: NDArray[np.bool_]  # [E] nothing learned is of the user
    learn_seconds: float
    score_seconds: float


def compete(contestants: Sequence[Contestant], steps: Steps, items: int, seeds: Sequence[int]) -> list[Run]:
    """Run every contestant with every seed; one without randomness only with the first. items: V.

    Raises ConfigError when the protocol leaves nothing to foresee, ModelRefused on scores that are not finite.
    """
    total = sum(len(step.places) for step in steps())
    if total == 0:
        raise ConfigError("the protocol leaves no event to foresee", "give more events, or cut earlier")
    runs = []
    for contestant in contestants:
        make = contestant.makers[0]
        if len(contestant.makers) > 1:
            make = _best_maker(contestant, steps, total, items, seeds[0])
        for seed in seeds if contestant.seeded else seeds[:1]:
            arm = make(seed)
            ranked = list(_through(arm, steps(), items, contestant.name))
            runs.append(_summed_up(contestant.name, arm.name, seed, ranked, items))
    return runs


def _best_maker(contestant: Contestant, steps: Steps, total: int, items: int, seed: int) -> Callable[[int], Arm]:
    """The maker whose arm is best on a sample of the very events that are tested, `total` in all."""

    def sampled() -> Iterator[Step]:
        for step in steps():
            yield replace(step, places=evenly(step.places, max(1, SAMPLE * len(step.places) // total)))

    def quality(make: Callable[[int], Arm]) -> float:
        ranked = list(_through(make(seed), sampled(), items, f"{contestant.name}, which"))
        return figures(*_joined(ranked), items)[f"ndcg@{TOP}"]

    return max(contestant.makers, key=quality)


def _through(arm: Arm, steps: Iterator[Step], items: int, title: str) -> Iterator[_Ranked]:
    at_once = int(np.clip(SCORES_AT_ONCE // (items + 1), FEWEST_AT_ONCE, MOST_AT_ONCE))
    for step in steps:
        if len(step.places) == 0:
            continue
        began = time.monotonic()
        arm.learn(step.known, step.check)
        learned = time.monotonic()
        target = step.histories.item_index[step.places]
        ranks, lists, scoring = [], [], 0.0
        with progress(title, len(step.places)) as advance:
            for begin in range(0, len(step.places), at_once):
                places = step.places[begin : begin + at_once]
                started = time.monotonic()
                scores = arm.scores(step.histories, places)
                scoring += time.monotonic() - started
                row, item = step.already_had(places)
                scores[row, item] = -np.inf
                rank, top = ranks_and_lists(scores, target[begin : begin + at_once])
                ranks.append(rank)
                lists.append(top)
                advance(len(places))
        known_items = np.zeros(items + 1, np.bool_)
        known_items[step.histories.item_index[step.learned]] = True
        yield _Ranked(
            begins_ms=step.begins_ms,
            event_time=step.histories.event_time[step.places],
            rank=np.concatenate(ranks),
            lists=np.concatenate(lists),
            new_item=~known_items[target],
            new_user=~step.learned[step.histories.first[step.places]],
            learn_seconds=learned - began,
            score_seconds=scoring,
        )


def _joined(ranked: Sequence[_Ranked]) -> tuple[Ints, Ints]:
    return np.concatenate([each.rank for each in ranked]), np.concatenate([each.lists for each in ranked])


def _summed_up(name: str, variant: str, seed: int, ranked: Sequence[_Ranked], items: int) -> Run:
    rank, lists = _joined(ranked)
    new_item = np.concatenate([each.new_item for each in ranked])
    new_user = np.concatenate([each.new_user for each in ranked])
    members = {
        "all": np.ones(len(rank), np.bool_),
        "known": ~new_item & ~new_user,
        "new items": new_item,
        "new users": new_user,
    }
    return Run(
        arm=name,
        variant=variant,
        seed=seed,
        groups={group: figures(rank[mine], lists[mine], items) for group, mine in members.items()},
        parts=tuple(_parts(ranked, items)),
        learn_seconds=sum(each.learn_seconds for each in ranked),
        score_seconds=sum(each.score_seconds for each in ranked),
    )


def _parts(ranked: Sequence[_Ranked], items: int) -> Iterator[Part]:
    """The periods; or, of a single one that lies in time, PARTS of the same number of events."""
    for each in ranked:
        if len(ranked) > 1:
            part = figures(each.rank, each.lists, items)
            yield Part(each.begins_ms, part, each.learn_seconds, each.score_seconds)
        elif each.begins_ms is not None:
            for mine in np.array_split(np.arange(len(each.rank)), min(PARTS, len(each.rank))):
                yield Part(int(each.event_time[mine[0]]), figures(each.rank[mine], each.lists[mine], items), 0.0, 0.0)
