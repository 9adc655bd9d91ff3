"""Popularity over a window of time or of events, and which items follow the last one: the simplest baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainer.config import DAY_MS, POPULARITY_DAYS
from trainer.fit import Check
from trainer.sequences import NEAR, NOT_TARGETS, Histories, Ints, added_up, near_pairs

if TYPE_CHECKING:
    from trainer.evaluate.events import Clock

# Where time is only an order, windows hold so many of the newest events.
NEWEST_EVENTS = (1_000, 10_000, 100_000)
# Popularity decides between items that follow alike: sums of 1 / distance differ by 1 / 2520 or more.
TIE_BREAK = np.float32(1e-4)
_NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Window:
    """What popularity counts. span_ms or events: the newest so much; both None = everything.

    live: up to the very moment of the event to foresee, as a counter in production would; otherwise up to the moment
    that parts what is learned from what is foreseen.
    """

    span_ms: int | None = None
    events: int | None = None
    live: bool = False

    @property
    def name(self) -> str:
        """Such as "7 days, live"."""
        size = "all"
        if self.span_ms is not None:
            size = f"{self.span_ms // DAY_MS} days"
        if self.events is not None:
            size = f"{self.events:,} events"
        return f"{size}, live" if self.live else size


def windows_for(clock: Clock, live: bool) -> list[Window]:
    """The windows worth trying. live: whether counting up to each event is fair, as it is where time is cut once."""
    windows = [Window()]
    if clock in ("time", "period"):
        windows += [Window(span_ms=days * DAY_MS) for days in POPULARITY_DAYS]
    if clock == "order":
        windows += [Window(events=events) for events in NEWEST_EVENTS]
    if live and clock != "place":
        windows += [Window(each.span_ms, each.events, live=True) for each in windows]
    return windows


class Popularity:
    """Scores an item by how often it was chosen in a window."""

    def __init__(self, window: Window, items: int) -> None:
        self.name = window.name
        self._window = window
        self._items = items
        self._counter = _Counter(_NOTHING, _NOTHING, items)
        self._of: Histories | None = None
        self._end = 0

    def learn(self, known: Histories, check: Check | None) -> None:
        """Count what is known, check events included."""
        learned = known if check is None else check.histories
        self._counter, self._of = _counter(learned, self._items), learned
        self._end = int(learned.event_time.max(initial=0)) + 1

    def scores(self, histories: Histories, places: Ints) -> NDArray[np.float32]:
        """Counts as they stood: float32[B, V+1]."""
        if not self._window.live:
            return np.tile(self._counter.counts(self._end, self._window), (len(places), 1))
        if self._of is not histories:
            self._counter, self._of = _counter(histories, self._items), histories
        moments = histories.event_time[places].tolist()
        return np.stack([self._counter.counts(now, self._window).copy() for now in moments])


class _Counter:
    """Counts of items in a window that moves over events in order of time."""

    def __init__(self, time: Ints, item: Ints, items: int) -> None:
        self._time, self._item = time, item
        self._counts = np.zeros(items + 1, np.float32)
        self._begin = self._end = 0

    def counts(self, now: int, window: Window) -> NDArray[np.float32]:
        """Events before `now` (ms) in the window, by item: float32[V+1]; overwritten by the next call."""
        end = int(np.searchsorted(self._time, now))
        begin = 0
        if window.span_ms is not None:
            begin = int(np.searchsorted(self._time, now - window.span_ms))
        if window.events is not None:
            begin = max(0, end - window.events)
        self._move(self._end, end)
        self._move(begin, self._begin)
        self._begin, self._end = begin, end
        return self._counts

    def _move(self, old: int, new: int) -> None:
        """Add the events from old to new, or take away those from new to old."""
        changed, amount = self._item[min(old, new) : max(old, new)], np.float32(1 if new > old else -1)
        if len(changed) < len(self._counts):
            np.add.at(self._counts, changed, amount)
        else:
            self._counts += amount * np.bincount(changed, minlength=len(self._counts)).astype(np.float32)


def _counter(histories: Histories, items: int) -> _Counter:
    chosen = np.flatnonzero(~np.isin(histories.action, NOT_TARGETS))
    in_time = chosen[np.argsort(histories.event_time[chosen], kind="stable")]
    return _Counter(histories.event_time[in_time], histories.item_index[in_time], items)


class LastItem:
    """Scores an item by how often, and how soon, it followed the user's last one: the sum of 1 / distance."""

    name = f"the next {NEAR}"

    def __init__(self, items: int) -> None:
        self._items = items
        self._begin = np.zeros(items + 2, np.int64)
        self._following, self._weight = _NOTHING, np.zeros(0, np.float32)
        self._tie_break = np.zeros(items + 1, np.float32)

    def learn(self, known: Histories, check: Check | None) -> None:
        """Count the pairs of what is known, check events included."""
        learned = chosen_alone(known if check is None else check.histories)
        pairs, weights = [], []
        for apart, older, newer in near_pairs(learned, learned.item_index):
            pairs.append(older * (self._items + 1) + newer)
            weights.append(np.full(len(older), 1.0 / apart))
        pair, weight = added_up(pairs, weights)
        self._following = pair % (self._items + 1)
        self._weight = weight.astype(np.float32)
        self._begin = np.searchsorted(pair // (self._items + 1), np.arange(self._items + 2))
        self._tie_break = TIE_BREAK * tie_break(learned, self._items)

    def scores(self, histories: Histories, places: Ints) -> NDArray[np.float32]:
        """Of what followed the last item, float32[B, V+1]; by popularity alone where nothing did."""
        scores = np.tile(self._tie_break, (len(places), 1))
        for row, item in enumerate(recent_items(histories, places, 1)[:, 0].tolist()):
            begin, end = self._begin[item], self._begin[item + 1]
            scores[row, self._following[begin:end]] += self._weight[begin:end]
        return scores


def recent_items(histories: Histories, places: Ints, most: int) -> Ints:
    """The newest items chosen in the history before each place, newest first: int64[B, most], 0 = no more."""
    slot, real = histories.slots(places - 1)
    chosen = real & ~np.isin(histories.action[slot], NOT_TARGETS) & (histories.item_index[slot] > 0)
    items = np.where(chosen, histories.item_index[slot], 0)[:, ::-1]
    front = np.argsort(items == 0, axis=1, kind="stable")[:, :most]
    found = np.zeros((len(places), most), np.int64)
    found[:, : front.shape[1]] = np.take_along_axis(items, front, axis=1)
    return found


def chosen_alone(histories: Histories) -> Histories:
    """The histories without what was only shown, or disliked."""
    return histories.keep(np.flatnonzero(~np.isin(histories.action, NOT_TARGETS)))


def tie_break(histories: Histories, items: int) -> NDArray[np.float32]:
    """Popularity from 0 to 1, to decide between items that are scored alike: float32[V+1]."""
    counts = np.bincount(histories.item_index, minlength=items + 1)
    share: NDArray[np.float32] = (counts / max(1, counts.max())).astype(np.float32)
    return share
