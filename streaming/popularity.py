"""popularity: how often each item was wanted in the last hours of event time, in numpy.

Counts lie in hours, in a map outside: hour → (newest event time, {item id: count}). Here lie the totals over the window
and what came since the hours were last written; an hour is read again when it is written anew or leaves the window.
Items have numbers here, which the map knows nothing of.
"""

from collections.abc import Collection
from heapq import nsmallest
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyflink.datastream.state import MapState

from schemas.user_state import HOUR_MS

# The newest event time of a micro-batch, ms; hours since 1970, item ids and counts, one of each for an item of an hour.
Addition = tuple[int, list[int], list[str], list[int]]
# As jobs sent and kept it before: (newest, [(hour, item id, count), …]).
OlderAddition = tuple[int, list[tuple[int, str, int]]]
# An hour and an item in one number: the item in the lower bits.
_ITEM_BITS = 32
_ITEM = (1 << _ITEM_BITS) - 1
# Room for the totals of so many items at first.
_ROOM = 1024

Ints = NDArray[np.int64]


class Popularity:
    """Counts over a window of `hours`, ending with the hour of the newest event.

    kept: what lies in it is counted at once; it is written by `fold` alone, and hours that leave the window leave it.
    Whoever calls keeps what was added since the last `fold`, and adds it again after a restart.
    """

    def __init__(self, hours: int, kept: MapState) -> None:
        self._window = hours
        self._kept = kept
        self.newest = 0
        self._number: dict[str, int] = {}
        self._ids: list[str] = []
        self._totals: Ints = np.zeros(_ROOM, np.int64)
        # Items in each hour of the map.
        self._sizes: dict[int, int] = {}
        # What is not in the map yet, in chunks of (hour and item, count), and the hours in it.
        self._added: list[tuple[Ints, Ints]] = []
        self._touched: set[int] = set()
        self._came = 0
        for hour, (newest, counts) in kept.items():
            self._sizes[hour] = len(counts)
            self._totals_of(counts, 1)
            self.newest = max(self.newest, newest)

    def __len__(self) -> int:
        """Items with a count."""
        return int(np.count_nonzero(self._totals))

    @property
    def numbered(self) -> int:
        """Items that are known here: after a fold at most twice those with a count."""
        return len(self._ids)

    @property
    def _oldest(self) -> int:
        """The hour that left the window last."""
        return self.newest // HOUR_MS - self._window

    def add(self, addition: Addition | OlderAddition) -> None:
        """Count a micro-batch; what is older than the window counts until the next `expire`, which `best` calls."""
        newest, hours, items, counts = addition if len(addition) == 4 else _columns(addition)
        self.newest = max(self.newest, newest)
        self._came += len(hours)
        if not hours:
            return
        hour, item, count = np.array(hours, np.int64), self._numbers(items), np.array(counts, np.int64)
        self._touched.update(hours)
        self._added.append((hour << _ITEM_BITS | item, count))
        np.add.at(self._totals, item, count)

    def worth_folding(self) -> bool:
        """Whether as much came since the last fold as a fold has to write."""
        return self._came >= sum(self._sizes.get(hour, 0) for hour in self._touched)

    def fold(self) -> None:
        """Write what came into its hours."""
        self.expire()
        where, count = self._recent()
        where, same = np.unique(where, return_inverse=True)
        count = np.bincount(same, count, len(where)).astype(np.int64)
        hour = where >> _ITEM_BITS
        # The newest event time goes over a restart with its own hour, even when it wanted no item.
        for each in sorted({*hour.tolist(), self.newest // HOUR_MS}):
            counts = self._kept.get(each)[1] if each in self._sizes else {}
            of_it = slice(*np.searchsorted(hour, (each, each + 1)))
            items = [self._ids[number] for number in (where[of_it] & _ITEM).tolist()]
            for item, more in zip(items, count[of_it].tolist(), strict=True):
                counts[item] = counts.get(item, 0) + more
            self._kept.put(each, (self.newest, counts))
            self._sizes[each] = len(counts)
        self._added, self._touched, self._came = [], set(), 0
        if 2 * len(self) < len(self._ids):
            self._forget_gone()

    def expire(self) -> None:
        """Take out of the totals, and of the map, what has left the window."""
        oldest = self._oldest
        for hour in [hour for hour in self._sizes if hour <= oldest]:
            self._totals_of(self._kept.get(hour)[1], -1)
            self._kept.remove(hour)
            del self._sizes[hour]
        if self._touched and min(self._touched) <= oldest:
            where, count = self._recent()
            left = where >> _ITEM_BITS <= oldest
            np.subtract.at(self._totals, where[left] & _ITEM, count[left])
            self._added = [(where[~left], count[~left])]
            self._touched = {hour for hour in self._touched if hour > oldest}

    def best(self, most: int, hidden: Collection[str]) -> tuple[list[str], list[int]]:
        """The most wanted items without the hidden ones, best first, equal ones by id; and their counts."""
        self.expire()
        totals = self._totals[: len(self._ids)].copy()
        totals[[self._number[item] for item in hidden if item in self._number]] = 0
        item = np.flatnonzero(totals)
        if len(item) > most:
            last = np.partition(totals[item], -most)[-most]
            above, equal = item[totals[item] > last], item[totals[item] == last]
            chosen = nsmallest(most - len(above), equal.tolist(), key=self._ids.__getitem__)
            item = np.concatenate([above, np.array(chosen, np.int64)])
        found = sorted(zip((-totals[item]).tolist(), (self._ids[number] for number in item.tolist()), strict=True))
        return [name for _, name in found], [-count for count, _ in found]

    def _recent(self) -> tuple[Ints, Ints]:
        """What was added since the last fold, in one piece."""
        if not self._added:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        where, count = zip(*self._added, strict=True)
        return np.concatenate(where), np.concatenate(count)

    def _totals_of(self, counts: dict[str, int], sign: int) -> None:
        item = self._numbers(list(counts))
        self._totals[item] += sign * np.fromiter(counts.values(), np.int64, len(counts))

    def _numbers(self, items: list[str]) -> Ints:
        """The number of each item, new ones included, for which the totals get room."""
        found: list[Any] = list(map(self._number.get, items))
        if None in found:
            for place, item in enumerate(items):
                if found[place] is None:
                    found[place] = self._number.setdefault(item, len(self._ids))
                    if found[place] == len(self._ids):
                        self._ids.append(item)
            if len(self._ids) > len(self._totals):
                self._totals = np.pad(self._totals, (0, 2 * len(self._ids) - len(self._totals)))
        return np.array(found, np.int64)

    def _forget_gone(self) -> None:
        """New numbers for the items with a count. Nothing that was added may wait to be folded."""
        item = np.flatnonzero(self._totals)
        self._ids = [self._ids[number] for number in item.tolist()]
        self._number = {name: number for number, name in enumerate(self._ids)}
        self._totals = np.pad(self._totals[item], (0, _ROOM))


def _columns(addition: OlderAddition) -> Addition:
    newest, counts = addition
    hours, items, amounts = map(list, zip(*counts, strict=True)) if counts else ([], [], [])
    return newest, hours, items, amounts
