"""Compares a model that is on trial with the one it may replace, on users as they come, and says when it must go.

A few users of a micro-batch, now and then, are scored by both models with the same state: both answers are at hand,
so nothing need be known of how many users click today, or of what. What is compared:
    non-finite   NaN or infinite scores, or no list at all where the other has one: at once
    coverage     users the model knows an item of; different items in the first places of all lists
    overlap      items that both have in a user's first places
    drift        how far the best scores lie apart, and how much wider or flatter the lists' scores are
    latency      time for the same users
All but the first are judged over a window of some hundred users, or of a quarter of a minute where users are few: what
goes wrong shows within one window, and the model is out of service before a minute is over.
The limits are far from what an honest retrain does: that one is better or worse is the trainer's gate to tell.
"""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.features import Inputs, model_inputs
from schemas.user_state import States
from streaming.model import Model

# The first places of a list: what a shop shows at once.
TOP = 10
# Users compared at a time, and the pause until the next, shorter after fewer users but never shorter than this: with
# 20 000 items some 4 % of a core.
SAMPLE = 32
EVERY_S, LEAST_PAUSE_S = 0.1, 0.02
# A window ends with so many users, or after so long if it has so few.
WINDOW_USERS, WINDOW_S, LEAST_USERS = 200, 15.0, 20
# A model that serves everybody is kept an eye on for so long, then it is the good one to go back to.
PROBATION_S = 60.0
# Shares of what the other model has, below which a model goes.
LEAST_KNOWN, LEAST_ITEMS, LEAST_SPREAD = 0.8, 0.2, 0.05
# How often a list may be missing, by the same measure.
MOST_EMPTY = 0.02
# The best scores may lie apart by so many times the width of the other's lists; lists may be so much wider.
MOST_DRIFT, MOST_SPREAD = 5.0, 20.0
# Times the other's time, if it takes this long a user at all.
MOST_TIME, NOTICED_S = 5.0, 0.2e-3
# What is measured in a window: `figures`.
FIGURES = ("overlap", "items", "known", "drift", "time")
# Of both models, what each may show: bool[V + 1].
Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]


class Answers(NamedTuple):
    """A model's lists of B users. items: uint64[B, K], hashes. score: float32[B, K]. seconds: for all of them."""

    items: NDArray[np.uint64]
    score: NDArray[np.float32]
    seconds: float


@dataclass
class _Window:
    """Sums over the users compared since it began."""

    began: float
    users: int = 0
    known_new: int = 0
    known_old: int = 0
    compared: int = 0
    empty: int = 0
    shared: float = 0.0
    drift: float = 0.0
    spread_new: float = 0.0
    spread_old: float = 0.0
    seconds_new: float = 0.0
    seconds_old: float = 0.0
    items_new: set[int] = field(default_factory=set)
    items_old: set[int] = field(default_factory=set)


class Guard:
    """One trial. least_overlap: the share of first places that must be common; 0 asks for none.

    Used by one thread at a time; figures may be read from any.
    """

    def __init__(self, least_overlap: float) -> None:
        self._least_overlap = least_overlap
        self._began = time.monotonic()
        self._window = _Window(self._began)
        self._clean = 0
        self._due = 0.0
        self.compared = 0
        # Of the last window: what its limits are about, by name, in percent.
        self.figures: dict[str, int] = {}

    @property
    def passed(self) -> bool:
        """Whether nothing was found for long enough."""
        return self._clean > 0 and time.monotonic() - self._began >= PROBATION_S

    @property
    def due(self) -> bool:
        """Whether it is time for another comparison."""
        return time.monotonic() >= self._due

    def compare(self, new: Model, old: Model, masks: Masks, states: States) -> str | None:
        """Score users with both models; what is wrong with the new one, or None. masks: what each may show."""
        self._due = time.monotonic() + max(LEAST_PAUSE_S, EVERY_S * len(states) / SAMPLE)
        inputs = [model_inputs(states, model.vocabulary) for model in (new, old)]
        knows = [(given["item_index"] != 0).any(axis=1) for given in inputs]
        rows = np.flatnonzero(knows[0] & knows[1])
        window = self._window
        window.users += len(states)
        window.known_new += int(knows[0].sum())
        window.known_old += int(knows[1].sum())
        if len(rows):
            theirs, own = (
                answers(model, {name: values[rows] for name, values in given.items()}, mask)
                for model, given, mask in zip((old, new), inputs[::-1], masks[::-1], strict=True)
            )
            if trouble := self._add(own, theirs):
                return trouble
        return self._judge() if self._complete() else None

    def _add(self, new: Answers, old: Answers) -> str | None:
        broken = np.isnan(new.score) | np.isposinf(new.score)
        if broken.any():
            return f"non-finite: {int(broken.any(axis=1).sum())} of {len(broken)} users got scores that are no numbers"
        window, users = self._window, len(new.score)
        self.compared += users
        window.compared += users
        window.seconds_new += new.seconds
        window.seconds_old += old.seconds
        shown_new, shown_old = np.isfinite(new.score), np.isfinite(old.score)
        window.empty += int((shown_old[:, 0] & ~shown_new[:, 0]).sum())
        first_new = np.where(shown_new, new.items, 0)[:, :TOP]
        first_old = np.where(shown_old, old.items, 0)[:, :TOP]
        common = (first_new[:, :, None] == first_old[:, None, :]) & (first_new != 0)[:, :, None]
        window.shared += float((common.any(axis=2).sum(axis=1) / np.maximum(1, (first_old != 0).sum(axis=1))).sum())
        window.items_new.update(first_new[first_new != 0].tolist())
        window.items_old.update(first_old[first_old != 0].tolist())
        both = np.flatnonzero(shown_new[:, 0] & shown_old[:, 0])
        window.drift += float((new.score[both, 0] - old.score[both, 0]).sum(dtype=np.float64))
        window.spread_new += _spread(new.score[both], shown_new[both])
        window.spread_old += _spread(old.score[both], shown_old[both])
        return None

    def _complete(self) -> bool:
        window = self._window
        late = time.monotonic() - window.began >= WINDOW_S
        return window.users >= WINDOW_USERS or (late and window.users >= LEAST_USERS)

    def _judge(self) -> str | None:
        """End the window: the first limit that is broken, with its figures, or None."""
        w, self._window = self._window, _Window(time.monotonic())
        users = max(1, w.compared)
        overlap, items = w.shared / users, len(w.items_new) / max(1, len(w.items_old))
        known, empty = w.known_new / max(1, w.known_old), w.empty / users
        drift, spread = abs(w.drift) / max(w.spread_old, 1e-9), w.spread_new / max(w.spread_old, 1e-9)
        slower = w.seconds_new / max(w.seconds_old, 1e-9)
        measured = (overlap, items, known, drift, slower)
        self.figures = {name: round(100 * min(value, 1e4)) for name, value in zip(FIGURES, measured, strict=True)}
        of = f" ({w.users} users)"
        if known < LEAST_KNOWN:
            return f"coverage: it knows an item of {w.known_new} users, the other model of {w.known_old}{of}"
        if not w.compared:
            return None
        if empty > MOST_EMPTY:
            return f"non-finite: {w.empty} users got no list of it, but one of the other model{of}"
        if items < LEAST_ITEMS:
            return f"coverage: {len(w.items_new)} items in all its lists, {len(w.items_old)} in the other model's{of}"
        if overlap < self._least_overlap:
            return f"overlap: {overlap:.1%} of the first {TOP} are common, {self._least_overlap:.1%} are asked{of}"
        if w.spread_old and drift > MOST_DRIFT:
            return f"drift: its best scores lie {drift:.1f} times the width of a list away{of}"
        if w.spread_old and not LEAST_SPREAD <= spread <= MOST_SPREAD:
            return f"drift: the scores of its lists spread {spread:.3g} times as far{of}"
        if slower > MOST_TIME and w.seconds_new / users > NOTICED_S:
            return f"latency: {1000 * w.seconds_new / users:.1f} ms a user, {slower:.1f} times the other model's{of}"
        self._clean += 1
        return None


def answers(model: Model, inputs: Inputs, available: NDArray[np.bool_]) -> Answers:
    """What a model says of these users, and how long it takes."""
    started = time.perf_counter()
    index, score = model.run(inputs, available)
    seconds = time.perf_counter() - started
    return Answers(model.hashes[index], score, seconds)


def _spread(score: NDArray[np.float32], shown: NDArray[np.bool_]) -> float:
    """The sum over users of best score minus last one shown."""
    last = np.where(shown, score, np.inf).min(axis=1, initial=np.inf)
    return float((score[:, 0] - last).sum(dtype=np.float64))
