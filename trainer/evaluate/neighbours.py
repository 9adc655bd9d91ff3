"""VMIS-kNN: what was chosen in the sessions most like this one (Kersbergen et al., Serenade, SIGMOD 2022).

For the newest items of a user, each weighted by how new it is:
 1. of each item the most recent sessions that hold it, and of all these the M most recent ones;
 2. the K of them with the largest sum of weights of shared items;
 3. their items, each scored by the similarity of its session, by how new the newest shared item is, and by how rare
    the item is.
Parameters are chosen on the check events among a few.

Shapes: B events scored at once, S sessions (numbered by time), I newest items of a user, P pairs of event and session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from schemas.features import SESSION_PAUSE_MS
from trainer.evaluate.metrics import figures, ranks_and_lists
from trainer.evaluate.popularity import chosen_alone, recent_items, tie_break
from trainer.evaluate.protocols import spans
from trainer.fit import Check
from trainer.sequences import Histories, Ints, evenly

if TYPE_CHECKING:
    from trainer.evaluate.events import Clock

# A longer session is cut: it would be like every other one.
SESSION_MOST = 50
# Check events that are enough to choose parameters.
CHOICE_EVENTS = 1_000
# Events scored at once: bounds the pairs of event and session.
AT_ONCE = 128
# How much an item counts falls by this much with each newer one that is not shared.
MATCH_DECAY = 0.1
# Popularity decides between items without votes; those with votes reach up to 1.
TIE_BREAK = np.float32(1e-6)


@dataclass(frozen=True)
class Parameters:
    """items: newest ones of a user that are matched. sessions: most recent ones looked at (M). neighbours: K.

    idf: whether rare items count more. pauses: whether a pause ends a session, or a user is one. again: whether the
    matched items themselves get votes, where repeats are kept.
    """

    items: int = 10
    sessions: int = 500
    neighbours: int = 100
    idf: bool = True
    pauses: bool = True
    again: bool = True

    @property
    def name(self) -> str:
        """Short, for tables."""
        kind = "sittings" if self.pauses else "users"
        idf = ", idf" if self.idf else ""
        again = "" if self.again else ", never again"
        return f"{self.neighbours} of {self.sessions} {kind}, {self.items} items{idf}{again}"


def choices(clock: Clock, repeats: bool) -> list[Parameters]:
    """Usual parameters first, then others. repeats: whether items the user had may come again."""
    pauses = (True, False) if clock == "time" else (False,)
    sizes = ((500, 100), (2500, 500))
    return [
        Parameters(items, sessions, neighbours, idf, pause, again)
        for pause, (sessions, neighbours), items, idf, again in product(
            pauses, sizes, (10, 3), (True, False), (True, False) if repeats else (True,)
        )
    ]


@dataclass(frozen=True)
class _Index:
    """Sessions by item and items by session, each a run in a long array."""

    items: int
    session_begin: Ints  # [S+1]
    session_item: Ints  # distinct items of each session
    item_begin: Ints  # [V+2]
    item_session: Ints  # sessions of each item, oldest to newest
    idf: NDArray[np.float64] = field(repr=False)  # [V+1]


def _index(histories: Histories, items: int, pauses: bool) -> _Index:
    place = np.arange(len(histories))
    begins = histories.first == place
    if pauses:
        begins[1:] |= np.diff(histories.event_time) > SESSION_PAUSE_MS
    start = np.maximum.accumulate(np.where(begins, place, 0))
    begins |= (place - start) % SESSION_MOST == 0
    session = np.cumsum(begins) - 1
    last = np.append(np.flatnonzero(begins)[1:], len(histories)) - 1
    # The number of a session is its place in time, so that newer means larger.
    number = np.empty(len(last), np.int64)
    number[np.argsort(histories.event_time[last], kind="stable")] = np.arange(len(last))
    held = np.unique(number[session] * (items + 1) + histories.item_index)
    of_session, of_item = held // (items + 1), held % (items + 1)
    by_item = np.argsort(of_item, kind="stable")
    frequency = np.bincount(of_item, minlength=items + 1)
    return _Index(
        items=items,
        session_begin=np.searchsorted(of_session, np.arange(len(last) + 1)),
        session_item=of_item,
        item_begin=np.searchsorted(of_item[by_item], np.arange(items + 2)),
        item_session=of_session[by_item],
        idf=np.log(max(len(last), 1) / np.maximum(frequency, 1)),
    )


class Neighbours:
    """VMIS-kNN over the sessions of all users."""

    def __init__(self, items: int, clock: Clock, chosen: Parameters | None = None) -> None:
        self.name = "parameters not chosen"
        self._items = items
        self._clock: Clock = clock
        self._chosen = chosen
        self._indexed: _Index | None = None
        self._tie_break = np.zeros(items + 1, np.float32)

    def learn(self, known: Histories, check: Check | None) -> None:
        """Choose parameters, the first time; then index what is known, check events included."""
        if self._chosen is None:
            tried = choices(self._clock, known.repeats)
            self._chosen = tried[0] if check is None else self._best(tried, known, check)
        self.name = self._chosen.name
        self._build(known if check is None else check.histories, self._chosen.pauses)

    def scores(self, histories: Histories, places: Ints) -> NDArray[np.float32]:
        """Similarity-weighted votes, float32[B, V+1], from 0 to 1; by popularity alone where there is no neighbour."""
        assert self._chosen is not None
        return self._scored(histories, places, self._chosen)

    def _build(self, histories: Histories, pauses: bool) -> None:
        learned = chosen_alone(histories)
        self._indexed = _index(learned, self._items, pauses)
        self._tie_break = TIE_BREAK * tie_break(learned, self._items)

    def _best(self, choices: Sequence[Parameters], known: Histories, check: Check) -> Parameters:
        places = evenly(check.places, CHOICE_EVENTS)
        target = check.histories.item_index[places]
        tried: list[tuple[float, Parameters]] = []
        for parameters in choices:
            if not tried or tried[-1][1].pauses != parameters.pauses:
                self._build(known, parameters.pauses)
            scores = self._scored(check.histories, places, parameters)
            if not check.histories.repeats:
                row, place = spans(check.histories.first[places], places)
                item = check.histories.item_index[place]
                other = item != target[row]
                scores[row[other], item[other]] = -np.inf
            rank, lists = ranks_and_lists(scores, target)
            tried.append((figures(rank, lists, self._items)["ndcg@10"], parameters))
        return max(tried, key=lambda each: each[0])[1]

    def _scored(self, histories: Histories, places: Ints, parameters: Parameters) -> NDArray[np.float32]:
        parts = [places[begin : begin + AT_ONCE] for begin in range(0, len(places), AT_ONCE)]
        scores = np.concatenate([self._votes(histories, part, parameters) for part in parts])
        scores /= np.maximum(scores.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        scores += self._tie_break
        return scores

    def _votes(self, histories: Histories, places: Ints, parameters: Parameters) -> NDArray[np.float32]:
        index = self._indexed
        assert index is not None
        event, session, similarity, newest = self._neighbours(index, histories, places, parameters)
        match = np.maximum(0.0, 1.0 - MATCH_DECAY * newest)
        row, at = spans(index.session_begin[session], index.session_begin[session + 1])
        item = index.session_item[at]
        vote = (similarity * match)[row]
        if parameters.idf:
            vote = vote * index.idf[item]
        width = index.items + 1
        votes = np.bincount(event[row] * width + item, vote, len(places) * width)
        votes = votes.reshape(len(places), width)
        if not parameters.again:
            np.put_along_axis(votes, recent_items(histories, places, parameters.items), 0.0, axis=1)
        return votes.astype(np.float32)

    @staticmethod
    def _neighbours(
        index: _Index, histories: Histories, places: Ints, parameters: Parameters
    ) -> tuple[Ints, Ints, NDArray[np.float64], Ints]:
        """The P chosen pairs: event, session, similarity float64, and how many items are newer than the shared one."""
        items = recent_items(histories, places, parameters.items)
        count = np.maximum((items > 0).sum(axis=1), 1)
        event, age = np.nonzero((items > 0) & ~_repeated(items))
        item = items[event, age]
        weight = (count[event] - age) / count[event]
        end = index.item_begin[item + 1]
        begin = np.maximum(index.item_begin[item], end - parameters.sessions)
        row, at = spans(begin, end)
        sessions = len(index.session_begin) - 1
        pair = event[row] * sessions + index.item_session[at]
        order = np.argsort(pair, kind="stable")  # of one pair, the newest shared item stays first
        pair, row = pair[order], row[order]
        begins = np.flatnonzero(np.diff(pair, prepend=-1))
        if len(begins) == 0:
            none = np.zeros(0, np.int64)
            return none, none, np.zeros(0), none
        similarity = np.add.reduceat(weight[row], begins)
        newest, pair = age[row[begins]], pair[begins]
        recent = _last_of_each(pair // sessions, parameters.sessions)
        similarity, newest, pair = similarity[recent], newest[recent], pair[recent]
        # By event, then similarity; of equal ones the more recent session.
        order = np.lexsort((pair, similarity, pair // sessions))
        best = order[_last_of_each(pair[order] // sessions, parameters.neighbours)]
        return pair[best] // sessions, pair[best] % sessions, similarity[best], newest[best]


def _repeated(items: Ints) -> NDArray[np.bool_]:
    """Which of int64[B, I] items stand further to the left in their row already."""
    same = items[:, :, None] == items[:, None, :]
    earlier: NDArray[np.bool_] = (same & np.tri(items.shape[1], k=-1, dtype=bool)).any(axis=2)
    return earlier


def _last_of_each(group: Ints, most: int) -> Ints:
    """Places of the last `most` entries of each group; equal groups lie together in int64[N]."""
    ends = np.append(np.flatnonzero(np.diff(group)) + 1, len(group))
    length = np.diff(ends, prepend=0)
    to_end = np.repeat(ends, length) - np.arange(len(group))
    return np.flatnonzero(to_end <= most)
