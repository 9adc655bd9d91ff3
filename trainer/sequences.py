"""Clicks as histories: who did what in which order, and the windows a model learns from.

Events of a user are ordered as in the job's state: by event_time, then event hash. A window is
what a user's ring held at some moment: the newest HISTORY events, right-aligned, empty slots left.

Shape suffixes: N events, U users, W windows, L = HISTORY.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.click import ACTIONS
from schemas.features import Inputs, Vocabulary, history_inputs
from schemas.user_state import HISTORY

Ints = NDArray[np.int64]

# What a user did not choose, or did not like, is context for the model but nothing to predict.
NOT_TARGETS = tuple(ACTIONS.index(action) for action in ("DISLIKE", "IMPRESSION"))

# The newest events, never learned from before they have judged the result: this share of all events
# and of those that the served model has not learned, at most so many.
HELD_SHARE, HELD_SHARE_OF_NEW, HELD_MOST = 0.05, 0.25, 20_000
# Below this many held-back events two models cannot be told apart.
HELD_LEAST = 200
# The stop slice is this part of the held-back one: its events are learned only briefly, at the end.
STOP_PART = 5


@dataclass(frozen=True)
class Histories:
    """All events, sorted by user, event time and event hash."""

    first: Ints  # [N] place of the first event of the event's user
    last: Ints  # [N] place of the last event of the event's user
    item_index: Ints  # [N] 1-based; 0 = not in the vocabulary
    action: NDArray[np.uint8]  # [N]
    event_time: Ints  # [N] ms
    user_count: int

    def __len__(self) -> int:
        return len(self.event_time)

    def before(self, until_ms: int) -> Histories:
        """The same histories as they stood at a moment: events with event_time < until_ms."""
        kept = np.flatnonzero(self.event_time < until_ms)
        return _from_sorted(self.first[kept], self.item_index[kept], self.action[kept], self.event_time[kept])

    def inputs(self, newest: Ints) -> Inputs:
        """Model inputs [W, L] of the windows whose newest events lie at these places int64[W]."""
        place, real = self._slots(newest)
        return history_inputs(
            np.where(real, self.item_index[place], 0),
            np.where(real, self.action[place], 0).astype(np.uint8),
            np.where(real, self.event_time[place], 0),
        )

    def seen(self, newest: Ints) -> Ints:
        """Item indices int64[W, L] in the windows with these newest events; 0 = empty slot."""
        place, real = self._slots(newest)
        return np.where(real, self.item_index[place], 0)

    def targets(self, windows: Windows) -> Ints:
        """What came next after each slot of the windows: item index int64[W, L], 0 = learn nothing.

        Nothing is learned from empty slots, from items that the window already shows (they would
        be masked when served), nor from what an earlier window of the same pass has taught.
        """
        place, real = self._slots(windows.newest)
        wanted = real & (place >= windows.untaught[:, None])
        following = np.minimum(place + 1, len(self) - 1)
        wanted &= ~np.isin(self.action[following], NOT_TARGETS)
        target = np.where(wanted, self.item_index[following], 0)
        item = np.where(real, self.item_index[place], 0)
        up_to = np.tri(HISTORY, dtype=bool)
        repeated = ((target[:, :, None] == item[:, None, :]) & up_to).any(axis=2)
        return np.where(repeated, 0, target)

    def _slots(self, newest: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Places int64[W, L] of the windows' slots, and which of them hold an event of the user."""
        place = newest[:, None] + np.arange(1 - HISTORY, 1)
        return np.maximum(place, 0), place >= self.first[newest][:, None]


@dataclass(frozen=True)
class Windows:
    """Windows to learn from. Each of them is followed by an event of the same user."""

    newest: Ints  # [W] place of the newest event
    untaught: Ints  # [W] what follows slots before this place was taught by an earlier window

    def __len__(self) -> int:
        return len(self.newest)

    def take(self, chosen: Ints) -> Windows:
        """The windows at these places of the list."""
        return Windows(self.newest[chosen], self.untaught[chosen])


def windows_of_one_pass(histories: Histories, rng: np.random.Generator) -> Windows:
    """Windows in which every event but a user's first is the target exactly once.

    Where the windows of a user begin is drawn anew each time, so that over several passes every
    event is learned with short and with long histories before it.
    """
    first, last = np.unique(histories.first), np.unique(histories.last)
    longer = last > first
    first, last = first[longer], last[longer]
    # The first window holds `offset` events, each later one HISTORY more, the last what is left.
    offset = np.minimum(rng.integers(1, HISTORY + 1, len(first)), last - first)
    windows = 1 + -(-(last - first - offset) // HISTORY)
    owner = np.repeat(np.arange(len(first)), windows)
    turn = np.arange(len(owner)) - np.repeat(np.cumsum(windows) - windows, windows)
    following = first[owner] + offset[owner] + turn * HISTORY
    untaught = np.where(turn == 0, first[owner], following - HISTORY)
    return Windows(np.minimum(following, last[owner]) - 1, untaught)


@dataclass(frozen=True)
class Slices:
    """Time cut in three: learn from before stop_from, stop by what follows, judge from judge_from.

    Both in ms; an event at the very moment belongs to the later slice.
    """

    stop_from: int
    judge_from: int


def slices(event_time: Ints, learned_until: int | None) -> Slices | None:
    """Cut int64[N] event times (any order); None when too few events are new to judge on.

    learned_until: ms, up to which the served model has learned; None when there is none.
    """
    newest = np.sort(event_time)
    new = len(newest) if learned_until is None else int((newest >= learned_until).sum())
    held = int(min(HELD_SHARE * len(newest), HELD_SHARE_OF_NEW * new, HELD_MOST))
    if held < HELD_LEAST:
        return None
    stopping = held // STOP_PART
    return Slices(stop_from=int(newest[-held - stopping]), judge_from=int(newest[-held]))


def next_items(histories: Histories, since_ms: int) -> Ints:
    """Places int64[...] of events since a moment that a recommendation could have foreseen.

    Such an event has a history before it, is an action worth predicting, and its item is in the
    vocabulary and not in the history (what a user's ring holds is never recommended).
    """
    place = np.flatnonzero(
        (histories.event_time >= since_ms)
        & (histories.first < np.arange(len(histories)))
        & (histories.item_index > 0)
        & ~np.isin(histories.action, NOT_TARGETS)
    )
    seen = histories.seen(place - 1)
    repeated: NDArray[np.bool_] = (seen == histories.item_index[place][:, None]).any(axis=1)
    return place[~repeated]


def evenly(places: Ints, most: int) -> Ints:
    """At most so many of the places, spread evenly over all of them."""
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, most).astype(np.int64)]


def histories(clicks: pl.DataFrame, vocabulary: Vocabulary) -> Histories:
    """Order clicks into histories.

    clicks: columns user_id, event_time (ms), event_hash, item_hash, action (code); one row per
    event, in any order.
    """
    ordered = clicks.sort("user_id", "event_time", "event_hash")
    user = ordered["user_id"].rle_id().to_numpy()
    begins = np.flatnonzero(np.diff(user, prepend=-1))
    return _from_sorted(
        begins[user] if len(user) else np.zeros(0, np.int64),
        vocabulary.index_of(ordered["item_hash"].to_numpy()),
        ordered["action"].to_numpy(),
        ordered["event_time"].to_numpy(),
    )


def _from_sorted(owner: Ints, item_index: Ints, action: NDArray[np.uint8], event_time: Ints) -> Histories:
    """Histories of events that lie sorted; owner[N]: any number that tells users apart."""
    begins = np.flatnonzero(np.diff(owner, prepend=-1)).astype(np.int64)
    lengths = np.diff(begins, append=len(owner))
    return Histories(
        first=np.repeat(begins, lengths),
        last=np.repeat(begins + lengths - 1, lengths),
        item_index=item_index,
        action=action,
        event_time=event_time,
        user_count=len(begins),
    )


def index_order(served: Sequence[str], catalogue: Iterable[str], clicked: Iterable[str]) -> list[str]:
    """Item ids in index order: the served model's order stays, new ids follow, sorted."""
    return [*served, *sorted({*catalogue, *clicked}.difference(served))]
