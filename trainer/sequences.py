"""Clicks as histories: who did what in which order, and the windows a model learns from.

Events of a user are ordered as in the job's state: by event_time, then event hash. A window is
what a user's ring held at some moment: the newest events, right-aligned, empty slots left.

Shape suffixes: N events, U users, W windows, L = events of history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.click import ACTIONS
from schemas.features import SESSION_PAUSE_MS, Inputs, Vocabulary, history_inputs
from schemas.user_state import HISTORY, WINDOWS, Window

if TYPE_CHECKING:
    import polars as pl

Ints = NDArray[np.int64]

# Events between two items that still count as together: about half an order of a busy customer.
NEAR = 10
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
    """All events, sorted by user, event time and event hash.

    history: how many events before now a model reads. repeats: whether what a user already had may come again; if
    not, such an event is context for the model, but nothing to predict.
    """

    first: Ints  # [N] place of the first event of the event's user
    last: Ints  # [N] place of the last event of the event's user
    item_index: Ints  # [N] 1-based; 0 = not in the vocabulary
    action: NDArray[np.uint8]  # [N]
    event_time: Ints  # [N] ms
    user_count: int
    history: int = HISTORY
    repeats: bool = False

    def __len__(self) -> int:
        return len(self.event_time)

    def before(self, until_ms: int) -> Histories:
        """The same histories as they stood at a moment: events with event_time < until_ms."""
        return self.keep(np.flatnonzero(self.event_time < until_ms))

    def keep(self, kept: Ints) -> Histories:
        """The histories of these events alone, given by their places in rising order."""
        return from_sorted(
            self.first[kept],
            self.item_index[kept],
            self.action[kept],
            self.event_time[kept],
            history=self.history,
            repeats=self.repeats,
        )

    def inputs(self, newest: Ints) -> Inputs:
        """Model inputs of the windows whose newest events lie at these places int64[W].

        As `schemas.features.model_inputs` makes them of a state that holds the events up to there.
        """
        place, real = self.slots(newest)
        inputs = history_inputs(
            np.where(real, self.item_index[place], 0),
            np.where(real, self.action[place], 0).astype(np.uint8),
            np.where(real, self.event_time[place], 0),
        )
        inputs["counters"] = self.counters(newest)
        return inputs

    def seen(self, newest: Ints) -> Ints:
        """Item indices int64[W, L] in the windows with these newest events; 0 = empty slot."""
        place, real = self.slots(newest)
        return np.where(real, self.item_index[place], 0)

    def targets(self, windows: Windows) -> Ints:
        """What came next after each slot of the windows: item index int64[W, L], 0 = learn nothing.

        Nothing is learned from empty slots, from items that the window already shows (they would
        be masked when served), nor from what an earlier window of the same pass has taught.
        """
        place, real = self.slots(windows.newest)
        wanted = real & (place >= windows.untaught[:, None])
        following = np.minimum(place + 1, len(self) - 1)
        wanted &= ~np.isin(self.action[following], NOT_TARGETS)
        if not self.repeats:
            wanted &= self.earlier[following] < place[:, :1].clip(self.first[windows.newest][:, None])
        return np.where(wanted, self.item_index[following], 0)

    def counters(self, places: Ints) -> NDArray[np.float32]:
        """`schemas.features.counters` as they stood after the events at these places: float32[..., C]."""
        found: NDArray[np.float32] = self._counters[places]
        return found

    @cached_property
    def _counters(self) -> NDArray[np.float32]:
        """Counters after every event: float32[N, C]. Each is asked for in every pass."""
        place = np.arange(len(self))
        counted = np.zeros((len(self) + 1, len(ACTIONS)), np.int32)
        counted[place + 1, self.action] = 1
        np.cumsum(counted, axis=0, out=counted)
        columns = [counted[1:] - counted[self._window_first(window)] for window in WINDOWS]
        begins = np.ones(len(self), np.bool_)
        begins[1:] = (self.first[1:] != self.first[:-1]) | (np.diff(self.event_time) > SESSION_PAUSE_MS)
        oldest = np.maximum(self.first, place - self.history + 1)
        session = np.maximum(np.maximum.accumulate(np.where(begins, place, 0)), oldest)
        seconds = (self.event_time - self.event_time[session]) // 1000
        columns.append(np.stack((place - oldest + 1, place - session + 1, seconds), axis=-1))
        found: NDArray[np.float32] = np.log1p(np.concatenate(columns, axis=1)).astype(np.float32)
        return found

    def _window_first(self, window: Window) -> Ints:
        """Place int64[N] of the oldest event in the window that ends with each event."""
        if len(self) == 0:
            return np.zeros(0, np.int64)
        owner = np.cumsum(self.first == np.arange(len(self)))
        bucket = self.event_time // window.width_ms
        bucket -= bucket.min() - window.buckets
        line = owner * int(bucket.max() + 1)
        found: Ints = np.searchsorted(line + bucket, line + bucket - window.buckets, side="right")
        return found

    @cached_property
    def earlier(self) -> Ints:
        """Place int64[N] of the event before each one by the same user on the same item; -1 = there is none."""
        order = np.lexsort((self.item_index, self.first))
        again = (self.first[order[1:]] == self.first[order[:-1]]) & (
            self.item_index[order[1:]] == self.item_index[order[:-1]]
        )
        earlier = np.full(len(self), -1, np.int64)
        earlier[order[1:][again]] = order[:-1][again]
        return earlier

    def slots(self, newest: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Places int64[W, L] of the windows' slots, and which of them hold an event of the user."""
        place = newest[:, None] + np.arange(1 - self.history, 1)
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
    # The first window holds `offset` events, each later one `length` more, the last what is left.
    length = histories.history
    offset = np.minimum(rng.integers(1, length + 1, len(first)), last - first)
    windows = 1 + -(-(last - first - offset) // length)
    owner = np.repeat(np.arange(len(first)), windows)
    turn = np.arange(len(owner)) - np.repeat(np.cumsum(windows) - windows, windows)
    following = first[owner] + offset[owner] + turn * length
    untaught = np.where(turn == 0, first[owner], following - length)
    return Windows(np.minimum(following, last[owner]) - 1, untaught)


def newest_windows(histories: Histories) -> Windows:
    """Each user's newest window alone, all that follows its events to be learned."""
    last = np.unique(histories.last)
    last = last[last > histories.first[last]]
    return Windows(last - 1, histories.first[last])


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
    if histories.repeats:
        return place
    # -1, no earlier event, must not count as one at the first places of all.
    earlier = histories.earlier[place]
    return place[(earlier < 0) | (earlier < place - histories.history)]


def evenly(places: Ints, most: int) -> Ints:
    """At most so many of the places, spread evenly over all of them."""
    if len(places) <= most:
        return places
    return places[np.linspace(0, len(places) - 1, most).astype(np.int64)]


def histories(clicks: pl.DataFrame, vocabulary: Vocabulary, history: int = HISTORY, repeats: bool = False) -> Histories:
    """Order clicks into histories.

    clicks: columns user_id, event_time (ms), event_hash, item_hash, action (code); one row per
    event, in any order.
    """
    ordered = clicks.sort("user_id", "event_time", "event_hash")
    user = ordered["user_id"].rle_id().to_numpy()
    begins = np.flatnonzero(np.diff(user, prepend=-1))
    return from_sorted(
        begins[user] if len(user) else np.zeros(0, np.int64),
        vocabulary.index_of(ordered["item_hash"].to_numpy()),
        ordered["action"].to_numpy(),
        ordered["event_time"].to_numpy(),
        history=history,
        repeats=repeats,
    )


def from_sorted(
    owner: Ints,
    item_index: Ints,
    action: NDArray[np.uint8],
    event_time: Ints,
    *,
    history: int = HISTORY,
    repeats: bool = False,
) -> Histories:
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
        history=history,
        repeats=repeats,
    )


def near_pairs(histories: Histories, item: Ints) -> Iterator[tuple[int, Ints, Ints]]:
    """Items of one user that stand 1 … NEAR events apart: (events apart, the older ones, the newer ones).

    item: int64[N], item indices of the histories' events.
    """
    for apart in range(1, NEAR + 1):
        same_user = histories.first[apart:] == histories.first[:-apart]
        yield apart, item[:-apart][same_user], item[apart:][same_user]


def added_up(keys: Sequence[Ints], weights: Sequence[NDArray[np.float64]]) -> tuple[Ints, NDArray[np.float64]]:
    """The different keys, rising, and the sum of the weights of each."""
    key, weight = np.concatenate(keys), np.concatenate(weights)
    if len(key) == 0:
        return key, weight
    # Numbers are sorted several times faster than places of numbers: where both fit into one number, they share it.
    bits = len(key).bit_length()
    if int(key.max()).bit_length() + bits < 64:
        packed = np.sort(key << bits | np.arange(len(key)))
        key, order = packed >> bits, packed & (1 << bits) - 1
    else:
        order = np.argsort(key, kind="stable")
        key = key[order]
    begins = np.flatnonzero(np.diff(key, prepend=-1))
    return key[begins], np.add.reduceat(weight[order], begins)


def index_order(served: Sequence[str], catalogue: Iterable[str], clicked: Iterable[str]) -> list[str]:
    """Item ids in index order: the served model's order stays, new ids follow, sorted."""
    return [*served, *sorted({*catalogue, *clicked}.difference(served))]
