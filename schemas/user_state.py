"""A user's state: one record of bytes, read and written by the job for whole batches at once.

The record is event counts in time buckets and a ring of the last HISTORY events. It depends on the set of events
alone, not on the order in which they came: events stand by (event_time, event hash), counts by absolute bucket.
Its first byte is the layout's version: Flink sees bytes and cannot migrate them, so old layouts stay readable here.
In memory all records are of one size; kept are they up to the last event of their ring: who has few events has a short
record.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.click import ACTIONS, Clicks
from schemas.compiled import Address, Compiled, carray

LAYOUT = 2
HISTORY = 50
HOUR_MS = 3_600_000
_LARGEST = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Window:
    """Counts over the last `buckets` buckets of `width_ms` milliseconds, the newest one included."""

    name: str
    width_ms: int
    buckets: int


WINDOWS = (
    Window("hour", HOUR_MS // 6, 6),
    Window("day", 3 * HOUR_MS, 8),
    Window("week", 24 * HOUR_MS, 7),
)
_BUCKETS = sum(window.buckets for window in WINDOWS)

EVENT = np.dtype(
    [
        ("item", "<u8"),
        ("event_time", "<i8"),  # ms
        ("event", "<u8"),
        ("action", "u1"),
    ]
)
USER_STATE = np.dtype(
    [
        ("layout", "u1"),
        ("spare_1", "V3"),  # what follows is aligned, which is how numpy works fast
        # Number of the newest bucket (event_time // width) of each window; bucket b lies in place b mod buckets.
        ("head", "<i4", (len(WINDOWS),)),
        ("last_write", "<i8"),  # µs: the Cassandra write time of the user's newest row
        # The windows' buckets one after the other.
        ("count", "<u2", (_BUCKETS, len(ACTIONS))),
        # Newest to oldest, empty places (item hash 0) at the end.
        ("ring", EVENT, (HISTORY,)),
        ("spare_2", "V6"),
    ]
)
assert USER_STATE.fields is not None
# The same record for compiled functions, which know no empty fields.
_RECORD = USER_STATE[[name for name in USER_STATE.names or () if not name.startswith("spare")]]
RING_START, RING_BYTES = USER_STATE.fields["ring"][1], HISTORY * EVENT.itemsize
EVENT_BYTES, USER_STATE_BYTES = EVENT.itemsize, USER_STATE.itemsize

# Layout 1: always of full size, oldest to newest, empty places on the left, a column a field.
_LAYOUT_1 = np.dtype(
    [
        ("layout", "u1"),
        ("item", "<u8", (HISTORY,)),
        ("event_time", "<i8", (HISTORY,)),
        ("event", "<u8", (HISTORY,)),
        ("action", "u1", (HISTORY,)),
        ("head", "<i4", (len(WINDOWS),)),
        ("count", "<u2", (sum(window.buckets for window in WINDOWS), len(ACTIONS))),
        ("last_write", "<i8"),
    ]
)

_WIDTHS = np.array([window.width_ms for window in WINDOWS], np.int64)
_SIZES = np.array([window.buckets for window in WINDOWS], np.int64)
_STARTS = np.cumsum(_SIZES) - _SIZES

States = NDArray[np.void]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Applied:
    """What became of N events. duplicate: the event was known. late: older than a full ring, counted only."""

    duplicate: NDArray[np.bool_]
    late: NDArray[np.bool_]


def empty_states(count: int) -> States:
    """`count` users without any event."""
    states = np.zeros(count, USER_STATE)
    states["layout"] = LAYOUT
    return states


_BLANK = empty_states(1).tobytes()[:RING_START]


def load_states(records: Sequence[bytes | None]) -> States:
    """States[U] of U records as kept in Flink; None is a user without state. Raises ValueError on what is no record."""
    known = [_BLANK if record is None else record for record in records]
    lengths = np.fromiter(map(len, known), np.int64, len(known))
    raw, states, fine = b"".join(known), np.zeros(len(known), USER_STATE), np.zeros(len(known), np.bool_)
    _fill(raw, len(raw), lengths, len(known), states, fine)
    for index in [] if fine.all() else np.flatnonzero(~fine).tolist():
        record, size = known[index], lengths[index]
        if size == _LAYOUT_1.itemsize and record[0] == 1:
            states[index] = _from_layout_1(record)
        elif RING_START <= size <= RING_START + RING_BYTES and (size - RING_START) % EVENT.itemsize == 0:
            raise ValueError(f"a state has layout {record[0]}; this version reads 1 to {LAYOUT}")
        else:
            raise ValueError(f"a state has {size} bytes, which is no whole number of events")
    return states


def dump_states(states: States) -> list[bytes]:
    """The records to keep, one a user."""
    raw, ends = states.tobytes(), np.empty(len(states), np.int64)
    _measure(states, len(states), ends)
    starts = range(0, len(raw), USER_STATE.itemsize)
    return [raw[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]


def select(states: States, rows: NDArray[Any]) -> States:
    """The states at `rows` (indices or a mask), copied."""
    # numpy copies records field by field, and their bytes some fifteen times faster.
    chosen: States = _raw(states)[rows].view(USER_STATE)[:, 0]
    return chosen


def history(states: States, field: str) -> NDArray[Any]:
    """A field of EVENT for the rings of U users, oldest to newest, empty places (0) on the left: [U, HISTORY]."""
    return np.ascontiguousarray(states["ring"][field][:, ::-1])


def window_counts(states: States) -> Ints:
    """Events by window and action, each window ending with the user's newest event: int64[U, windows, actions]."""
    counts = states["count"]
    edges = [(int(start), int(start + size)) for start, size in zip(_STARTS, _SIZES, strict=True)]
    return np.stack([counts[:, a:b].sum(axis=1, dtype=np.int64) for a, b in edges], axis=1)


def apply_events(states: States, user_index: Ints, clicks: Clicks) -> Applied:
    """Add N events to the states of U users, in place.

    user_index: int64[N], which of the U states each event belongs to. Events may come in any order.
    """
    count = len(clicks)
    duplicate, late = np.empty((2, count), np.bool_)
    _apply(
        states, len(states), np.ascontiguousarray(user_index), clicks.item_hash, clicks.event_time, clicks.event_hash,
        clicks.action, count, duplicate, late,
    )  # fmt: skip
    return Applied(duplicate, late)


@Compiled
def _apply(
    states_at: Address,
    users: int,
    user_at: Address,
    item_at: Address,
    time_at: Address,
    event_at: Address,
    action_at: Address,
    events: int,
    duplicate_at: Address,
    late_at: Address,
) -> None:
    states, user = carray(states_at, users, _RECORD), carray(user_at, events, np.int64)
    item, event = carray(item_at, events, np.uint64), carray(event_at, events, np.uint64)
    time, action = carray(time_at, events, np.int64), carray(action_at, events, np.uint8)
    duplicate, late = carray(duplicate_at, events, np.bool_), carray(late_at, events, np.bool_)
    for n in range(events):
        state = states[user[n]]
        ring = state.ring
        held, place, known = 0, 0, False
        while held < HISTORY and ring[held].item != 0:
            known |= ring[held].event == event[n]
            newer = ring[held].event_time > time[n]
            place += newer or (ring[held].event_time == time[n] and ring[held].event > event[n])
            held += 1
        if place == HISTORY:
            # What is too old for the ring is looked for among those that came with it.
            for earlier in range(n):
                known |= user[earlier] == user[n] and event[earlier] == event[n]
        late[n] = place == HISTORY and not known
        duplicate[n] = known
        if known:
            continue
        if place < HISTORY:
            for behind in range(min(held, HISTORY - 1), place, -1):
                ring[behind] = ring[behind - 1]
            ring[place].item, ring[place].event_time = item[n], time[n]
            ring[place].event, ring[place].action = event[n], action[n]
        for window in range(len(_SIZES)):
            width, size, start = _WIDTHS[window], _SIZES[window], _STARTS[window]
            bucket, head = time[n] // width, np.int64(state.head[window])
            # The buckets between the newest one so far and this one begin empty.
            for empty in range(max(head + 1, bucket - size + 1), bucket + 1):
                for each in range(len(ACTIONS)):
                    state.count[start + empty % size, each] = 0
            head = max(head, bucket)
            state.head[window] = head
            if bucket > head - size and state.count[start + bucket % size, action[n]] < _LARGEST:
                state.count[start + bucket % size, action[n]] += 1


@Compiled
def _fill(raw_at: Address, size: int, lengths_at: Address, count: int, states_at: Address, fine_at: Address) -> None:
    """Records into states; what is not fine is left empty."""
    raw, lengths = carray(raw_at, size, np.uint8), carray(lengths_at, count, np.int64)
    states, fine = carray(states_at, (count, USER_STATE_BYTES), np.uint8), carray(fine_at, count, np.bool_)
    start = 0
    for record in range(count):
        length = lengths[record]
        whole = RING_START <= length <= RING_START + RING_BYTES and (length - RING_START) % EVENT_BYTES == 0
        fine[record] = whole and raw[start] == LAYOUT
        if fine[record]:
            for place in range(length):
                states[record, place] = raw[start + place]
        start += length


@Compiled
def _measure(states_at: Address, count: int, ends_at: Address) -> None:
    """Where the record of each state ends when all states lie one after the other."""
    states, ends = carray(states_at, count, _RECORD), carray(ends_at, count, np.int64)
    for record in range(count):
        held = 0
        while held < HISTORY and states[record].ring[held].item != 0:
            held += 1
        ends[record] = record * USER_STATE_BYTES + RING_START + held * EVENT_BYTES


def _raw(states: States) -> NDArray[np.uint8]:
    """The bytes of U states: uint8[U, size], a view."""
    return states.view(np.uint8).reshape(len(states), USER_STATE.itemsize)


def _from_layout_1(record: bytes) -> np.void:
    [old] = np.frombuffer(record, _LAYOUT_1)
    state: np.void = empty_states(1)[0]
    for name in ("head", "count", "last_write"):
        state[name] = old[name]
    for name in EVENT.names or ():
        state["ring"][name] = old[name][::-1]
    return state
