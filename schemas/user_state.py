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
_EVENT_BYTES = np.dtype((np.void, EVENT.itemsize))
assert USER_STATE.fields is not None
RING_START, RING_BYTES = USER_STATE.fields["ring"][1], HISTORY * EVENT.itemsize
_COUNT_START = USER_STATE.fields["count"][1]

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

# By bucket of all windows: which window it is of, its place there, and how many that has.
_WINDOW = np.repeat(np.arange(len(WINDOWS)), [window.buckets for window in WINDOWS])
_PLACE = np.concatenate([np.arange(window.buckets) for window in WINDOWS]).astype(np.int32)
_WIDTHS = np.array([window.width_ms for window in WINDOWS], np.int64)
_SIZES = np.array([window.buckets for window in WINDOWS], np.int32)
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


def load_states(records: Sequence[bytes | None]) -> States:
    """States[U] of U records as kept in Flink; None is a user without state. Raises ValueError on what is no record."""
    blank = empty_states(1).tobytes()[:RING_START]
    known = [blank if record is None else record for record in records]
    lengths = np.fromiter(map(len, known), np.int64, len(known))
    broken = (lengths < RING_START) | (lengths > RING_START + RING_BYTES)
    broken |= (lengths - RING_START) % EVENT.itemsize != 0
    for index in np.flatnonzero(broken).tolist():
        if lengths[index] != _LAYOUT_1.itemsize or known[index][0] != 1:
            raise ValueError(f"a state has {lengths[index]} bytes, which is no whole number of events")
    full = [record.ljust(USER_STATE.itemsize, b"\0") for record in known]
    states = np.frombuffer(bytearray().join(full), USER_STATE)
    for index in np.flatnonzero(states["layout"] != LAYOUT).tolist():
        if not broken[index] or states["layout"][index] != 1:
            raise ValueError(f"a state has layout {states['layout'][index]}; this version reads 1 to {LAYOUT}")
        states[index] = _from_layout_1(full[index][: _LAYOUT_1.itemsize])
    return states


def dump_states(states: States) -> list[bytes]:
    """The records to keep, one a user."""
    raw = states.tobytes()
    events = np.count_nonzero(states["ring"]["item"], axis=1)
    starts = np.arange(len(states)) * USER_STATE.itemsize
    ends = starts + RING_START + EVENT.itemsize * events
    return [raw[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


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
    events = np.empty(len(clicks), EVENT)
    events["item"], events["event_time"] = clicks.item_hash, clicks.event_time
    events["event"], events["action"] = clicks.event_hash, clicks.action
    order = np.lexsort((clicks.event_hash, clicks.event_time, user_index))
    owner, ordered = user_index[order], events[order]
    duplicate, late = np.zeros(len(order), np.bool_), np.zeros(len(order), np.bool_)

    # Nearly all users only have events that are new and newer than all before; the others take the long way.
    merged = np.zeros(len(states), np.bool_)
    merged[owner[_not_newer(states, owner, ordered)]] = True
    if merged.any():
        rows, members = np.flatnonzero(merged), np.flatnonzero(merged[user_index])
        part, place = select(states, rows), np.cumsum(merged) - 1
        duplicate[members], late[members] = _merge(part, place[user_index[members]], events[members])
        _raw(states)[rows] = _raw(part)
        appended = ~merged[owner]
        _append(states, owner[appended], ordered[appended])
        fresh = ~duplicate[order]
        owner, ordered = owner[fresh], ordered[fresh]
    else:
        _append(states, owner, ordered)
    _count(states, owner, ordered)
    return Applied(duplicate, late)


def _not_newer(states: States, owner: Ints, events: States) -> NDArray[np.bool_]:
    """Which events, sorted by user and moment, do not simply go before what their user's ring holds: bool[N]."""
    newest = states["ring"][:, 0][owner]
    time, event = events["event_time"], events["event"]
    older = (time < newest["event_time"]) | ((time == newest["event_time"]) & (event <= newest["event"]))
    older |= (np.ascontiguousarray(states["ring"]["event"])[owner] == event[:, None]).any(axis=1)
    by_event = np.lexsort((event, owner))
    again = (event[by_event[1:]] == event[by_event[:-1]]) & (owner[by_event[1:]] == owner[by_event[:-1]])
    older[by_event[1:][again]] = True
    not_newer: NDArray[np.bool_] = older
    return not_newer


def _append(states: States, owner: Ints, events: States) -> None:
    """Put events, sorted by user and moment and newer than all before, at the front of their users' rings."""
    added = np.bincount(owner, minlength=len(states))
    rings = _raw(states)[:, RING_START : RING_START + RING_BYTES]
    for count in np.unique(added[added > 0]).tolist():
        shift = min(count, HISTORY) * EVENT.itemsize
        rows = added == count
        if rows.all():
            rings[:, shift:] = rings[:, : RING_BYTES - shift].copy()
        else:
            rings[rows, shift:] = rings[rows, : RING_BYTES - shift]
    # The newest event of a user is the last one here and the first one there.
    place = np.cumsum(added)[owner] - 1 - np.arange(len(owner))
    stays = place < HISTORY
    rings.view(_EVENT_BYTES)[owner[stays], place[stays]] = events.view(_EVENT_BYTES)[stays]


def _merge(states: States, owner: Ints, events: States) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Bring events, in their order of arrival, into the rings of U users: which were known, which are too old."""
    ring = states["ring"]
    oldest = ring[:, -1][owner]
    time, event = events["event_time"], events["event"]
    older = (time < oldest["event_time"]) | ((time == oldest["event_time"]) & (event < oldest["event"]))

    held_owner, held_place = np.nonzero(ring["item"])
    old = len(held_owner)
    # Old entries first, new ones behind: of equal events the first one stays.
    user = np.concatenate((held_owner, owner))
    entries = np.concatenate((ring[held_owner, held_place], events))
    event = entries["event"]
    by_event = np.lexsort((event, user))  # stable: equal events keep their order
    again = np.zeros(len(user), np.bool_)
    again[by_event[1:]] = (event[by_event[1:]] == event[by_event[:-1]]) & (user[by_event[1:]] == user[by_event[:-1]])
    duplicate = again[old:]

    order = np.lexsort((event, entries["event_time"], user))
    order = order[~again[order]]
    user = user[order]
    ends = np.cumsum(np.bincount(user, minlength=len(states)))
    place = ends[user] - 1 - np.arange(len(user))
    stays = place < HISTORY
    made = np.zeros_like(ring)
    made[user[stays], place[stays]] = entries[order[stays]]
    late = (oldest["item"] != 0) & older & ~duplicate
    states["ring"] = made
    return duplicate, late


def _count(states: States, owner: Ints, events: States) -> None:
    """Count events, sorted by user and moment, in their buckets."""
    if not len(owner):
        return
    bucket = events["event_time"][:, None] // _WIDTHS
    last = np.append(owner[1:] != owner[:-1], True)
    old = states["head"]
    head = old.astype(np.int64)
    head[owner[last]] = np.maximum(head[owner[last]], bucket[last])
    moved = np.flatnonzero((head != old).any(axis=1))
    # The bucket that a place stands for under the new head; where it is newer than the old head it starts at 0.
    new_head = head[moved].astype(np.int32)[:, _WINDOW]
    standing = new_head - (new_head - _PLACE) % _SIZES[_WINDOW]
    states["count"][moved] *= (standing <= old[moved][:, _WINDOW])[:, :, None]
    states["head"] = head
    event, window = np.nonzero(bucket > head[owner] - _SIZES)
    place = _STARTS[window] + bucket[event, window] % _SIZES[window]
    # All states as one row of numbers of two bytes, which is what np.add.at is fast with.
    numbers = states.view(np.uint16)
    cells = (owner[event] * USER_STATE.itemsize + _COUNT_START) // 2 + place * len(ACTIONS) + events["action"][event]
    if int(numbers[cells].max(initial=0)) + len(owner) <= _LARGEST:
        np.add.at(numbers, cells, 1)
    else:  # somewhere the largest number may be passed, where a count stops
        cells, times = np.unique(cells, return_counts=True)
        numbers[cells] = np.minimum(numbers[cells] + times, _LARGEST)


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
