"""The one definition of what a model is fed, used by the job and by the trainer alike.

Shapes: B users, L = HISTORY events, C = COUNTER_NAMES. Every input of an event depends on that event and on earlier
ones alone, so that a sequence serves as many training examples as it has events.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.click import ACTIONS
from schemas.ids import hash_ids
from schemas.user_state import WINDOWS, States, history, window_counts

# Powers of two of seconds: bucket 32 begins at 2**31 s, 68 years.
GAP_BUCKETS = 33
# A pause longer than this ends a session.
SESSION_PAUSE_MS = 30 * 60 * 1000
COUNTER_NAMES = (
    *(f"{w.name}_{a.lower()}" for w in WINDOWS for a in ACTIONS),
    "history_events",
    "session_events",
    "session_seconds",
)

Inputs = dict[str, NDArray[np.int64] | NDArray[np.float32] | NDArray[np.bool_]]


class Vocabulary:
    """The items a model knows, by index 1 … size; 0 is padding and every item it does not know."""

    def __init__(self, item_ids: Sequence[str]) -> None:
        self.ids = list(item_ids)
        self.size = len(self.ids)
        hashes = hash_ids(self.ids)
        order = np.argsort(hashes)
        # One more behind the last, which no item has: the end of a search may be looked at.
        self._hashes = np.append(hashes[order], np.uint64(0))
        self._index = np.append(order.astype(np.int64) + 1, 0)
        # Hashes are spread evenly: their first bits say where among all they lie, give or take two.
        bits = max(1, self.size.bit_length())
        self._shift = np.uint64(64 - bits)
        firsts = np.arange(1 << bits, dtype=np.uint64) << self._shift
        self._start = np.append(np.searchsorted(self._hashes[:-1], firsts), self.size)

    def index_of(self, item_hash: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Indices of hashed items, of the same shape; 0 where an item is unknown."""
        index = np.zeros(item_hash.shape, np.int64)
        asked = np.flatnonzero(item_hash)
        wanted = item_hash.reshape(-1)[asked]
        bucket = (wanted >> self._shift).astype(np.int64)
        place, end = self._start[bucket], self._start[bucket + 1]
        while len(asked):
            found = self._hashes[place] == wanted
            index.reshape(-1)[asked[found]] = self._index[place[found]]
            place = place + 1
            left = ~found & (place < end)
            asked, wanted, place, end = asked[left], wanted[left], place[left], end[left]
        return index


def history_inputs(item_index: NDArray[np.int64], action: NDArray[np.uint8], event_time: NDArray[np.int64]) -> Inputs:
    """Inputs of B histories, right-aligned, oldest to newest; event_time 0 marks an empty place.

    item_index: int64[B, L]. action: uint8[B, L], index into ACTIONS. event_time: int64[B, L], ms.
    Returns item_index int64[B, L], action int64[B, L] (code + 1, 0 empty), gap int64[B, L], the bucket of the time
    since the event before (0 for the first event), and age int64[B, L], the bucket of the time from the event up to
    now, the moment of the newest event, at which the list is made; both 0 in empty places.
    """
    filled = event_time != 0
    gap = np.zeros(event_time.shape, np.int64)
    gap[:, 1:] = np.where(filled[:, 1:] & filled[:, :-1], time_bucket(event_time[:, 1:] - event_time[:, :-1]), 0)
    return {
        "item_index": np.where(filled, item_index, 0),
        "action": np.where(filled, action.astype(np.int64) + 1, 0),
        "gap": gap,
        "age": np.where(filled, time_bucket(event_time[:, -1:] - event_time), 0),
    }


def time_bucket(span_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """The log2 bucket, 1 … GAP_BUCKETS - 1, of spans in ms; negative ones count as 0."""
    seconds = np.maximum(span_ms, 0) // 1000
    # A float's exponent is the exact bit length: 0 s -> 1, 1-2 s -> 2, 3-6 s -> 3, …
    bits = ((seconds + 1).astype(np.float64).view(np.int64) >> 52) - 1022
    return np.minimum(bits, GAP_BUCKETS - 1)


def model_inputs(states: States, vocabulary: Vocabulary) -> Inputs:
    """Everything a model may ask for, of B users: `history_inputs` and counters float32[B, C]."""
    inputs = history_inputs(
        vocabulary.index_of(history(states, "item")), history(states, "action"), history(states, "event_time")
    )
    inputs["counters"] = counters(states)
    return inputs


def counters(states: States) -> NDArray[np.float32]:
    """log(1 + x) of COUNTER_NAMES, each window ending with the user's newest event: float32[B, C]."""
    time = history(states, "event_time")
    filled = time != 0
    newest = time[:, -1]
    # A session is the run of newest events without a longer pause between two of them.
    connected = np.ones(time.shape, np.bool_)
    connected[:, :-1] = (time[:, 1:] - time[:, :-1] <= SESSION_PAUSE_MS) & filled[:, :-1]
    in_session = np.logical_and.accumulate(connected[:, ::-1], axis=1)[:, ::-1] & filled
    started = np.where(in_session, time, np.iinfo(np.int64).max).min(axis=1)
    seconds = np.where(filled[:, -1], newest - started, 0) // 1000
    columns = [
        window_counts(states).reshape(len(states), len(WINDOWS) * len(ACTIONS)),
        np.stack((filled.sum(axis=1), in_session.sum(axis=1), seconds), axis=1),
    ]
    counted: NDArray[np.float32] = np.log1p(np.concatenate(columns, axis=1)).astype(np.float32)
    return counted
