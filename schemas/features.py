"""The one definition of what a model is fed, used by the job and by the trainer alike.

Shapes: B users, L = HISTORY events, C = COUNTER_NAMES. Every input of an event depends on that event and on earlier
ones alone, so that a sequence serves as many training examples as it has events.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.click import ACTIONS
from schemas.compiled import Address, Compiled, carray, inlined
from schemas.hashes import hash_ids
from schemas.user_state import HISTORY, WINDOWS, States, history, window_counts

# Powers of two of seconds: bucket 32 begins at 2**31 s, 68 years.
GAP_BUCKETS = 33
# A pause longer than this ends a session.
SESSION_PAUSE_MS = 30 * 60 * 1000
_OF_HISTORY = ("history_events", "session_events", "session_seconds")
COUNTER_NAMES = (*(f"{w.name}_{a.lower()}" for w in WINDOWS for a in ACTIONS), *_OF_HISTORY)

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
        index = np.empty(item_hash.shape, np.int64)
        hashes = np.ascontiguousarray(item_hash)
        _look_up(
            hashes, hashes.size, self._hashes, self._index, self.size + 1, self._start, len(self._start),
            int(self._shift), index,
        )  # fmt: skip
        return index


def history_inputs(item_index: NDArray[np.int64], action: NDArray[np.uint8], event_time: NDArray[np.int64]) -> Inputs:
    """Inputs of B histories, right-aligned, oldest to newest; event_time 0 marks an empty place.

    item_index: int64[B, L]. action: uint8[B, L], index into ACTIONS. event_time: int64[B, L], ms.
    Returns item_index int64[B, L], action int64[B, L] (code + 1, 0 empty), gap int64[B, L], the bucket of the time
    since the event before (0 for the first event), and age int64[B, L], the bucket of the time from the event up to
    now, the moment of the newest event, at which the list is made; both 0 in empty places.
    """
    inputs: Inputs = {name: np.empty(event_time.shape, np.int64) for name in ("item_index", "action", "gap", "age")}
    known = (np.ascontiguousarray(column) for column in (item_index, action, event_time))
    _describe(*known, *event_time.shape, *inputs.values())
    return inputs


def time_bucket(span_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """The log2 bucket, 1 … GAP_BUCKETS - 1, of spans in ms; negative ones count as 0."""
    buckets = np.empty(span_ms.shape, np.int64)
    _buckets(np.ascontiguousarray(span_ms), span_ms.size, buckets)
    return buckets


def model_inputs(states: States, vocabulary: Vocabulary) -> Inputs:
    """Everything a model may ask for, of B users: `history_inputs` and counters float32[B, C]."""
    inputs = history_inputs(
        vocabulary.index_of(history(states, "item")), history(states, "action"), history(states, "event_time")
    )
    inputs["counters"] = counters(states)
    return inputs


def counters(states: States) -> NDArray[np.float32]:
    """log(1 + x) of COUNTER_NAMES, each window ending with the user's newest event: float32[B, C]."""
    counts = np.empty((len(states), len(COUNTER_NAMES)), np.float64)
    counts[:, : -len(_OF_HISTORY)] = window_counts(states).reshape(len(states), len(WINDOWS) * len(ACTIONS))
    _sessions(np.ascontiguousarray(states["ring"]["event_time"]), len(states), counts)
    counted: NDArray[np.float32] = np.log1p(counts).astype(np.float32)
    return counted


@inlined
def _bucket(span_ms: int) -> int:
    # The bit length: 0 s -> 1, 1-2 s -> 2, 3-6 s -> 3, …
    left, bits = max(span_ms, 0) // 1000 + 1, 0
    while left:
        left >>= 1
        bits += 1
    return min(bits, GAP_BUCKETS - 1)


@Compiled
def _buckets(span_at: Address, count: int, bucket_at: Address) -> None:
    spans, buckets = carray(span_at, count, np.int64), carray(bucket_at, count, np.int64)
    for place in range(count):
        buckets[place] = _bucket(spans[place])


@Compiled
def _look_up(
    asked_at: Address,
    count: int,
    hashes_at: Address,
    index_at: Address,
    known: int,
    start_at: Address,
    starts: int,
    shift: int,
    found_at: Address,
) -> None:
    """Search each hash among those that begin with the same bits; no item has the hash 0."""
    asked, found = carray(asked_at, count, np.uint64), carray(found_at, count, np.int64)
    hashes, index = carray(hashes_at, known, np.uint64), carray(index_at, known, np.int64)
    start = carray(start_at, starts, np.int64)
    for each in range(count):
        wanted, found[each] = asked[each], 0
        if wanted != 0:
            bits = np.int64(wanted >> np.uint64(shift))
            for place in range(start[bits], start[bits + 1]):
                if hashes[place] == wanted:
                    found[each] = index[place]


@Compiled
def _describe(
    item_at: Address,
    kind_at: Address,
    time_at: Address,
    users: int,
    length: int,
    item_index_at: Address,
    action_at: Address,
    gap_at: Address,
    age_at: Address,
) -> None:
    shape = users, length
    item, time = carray(item_at, shape, np.int64), carray(time_at, shape, np.int64)
    kind = carray(kind_at, shape, np.uint8)
    item_index, action = carray(item_index_at, shape, np.int64), carray(action_at, shape, np.int64)
    gap, age = carray(gap_at, shape, np.int64), carray(age_at, shape, np.int64)
    for user in range(users):
        before = np.int64(0)
        for place in range(length):
            now = time[user, place]
            item_index[user, place] = action[user, place] = gap[user, place] = age[user, place] = 0
            if now != 0:
                item_index[user, place], action[user, place] = item[user, place], kind[user, place] + 1
                age[user, place] = _bucket(time[user, length - 1] - now)
                if before != 0:
                    gap[user, place] = _bucket(now - before)
            before = now


@Compiled
def _sessions(time_at: Address, users: int, counts_at: Address) -> None:
    """The counters of the history alone, the last ones. time: int64[B, L], newest to oldest."""
    time = carray(time_at, (users, HISTORY), np.int64)
    counts = carray(counts_at, (users, len(COUNTER_NAMES)), np.float64)
    for user in range(users):
        events, session, started = 0, 0, time[user, 0]
        while events < HISTORY and time[user, events] != 0:
            if events == 0 or started - time[user, events] <= SESSION_PAUSE_MS:
                session, started = session + 1, time[user, events]
            events += 1
        counts[user, -3], counts[user, -2] = events, session
        counts[user, -1] = (time[user, 0] - started) // 1000
