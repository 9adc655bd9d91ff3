"""A user's state: one fixed-size record of bytes, read and written by the job for whole batches at once.

The record is a ring of the last HISTORY events and event counts in time buckets. It depends on the set of events
alone, not on the order in which they came: events stand by (event_time, event hash), counts by absolute bucket.
Its first byte is the layout's version: Flink sees bytes and cannot migrate them, so old layouts stay readable here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.click import ACTIONS, Clicks

LAYOUT = 1
HISTORY = 50
HOUR_MS = 3_600_000


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

USER_STATE = np.dtype(
    [
        ("layout", "u1"),
        # The ring: oldest to newest, empty places (item hash 0) on the left.
        ("item", "<u8", (HISTORY,)),
        ("event_time", "<i8", (HISTORY,)),  # ms
        ("event", "<u8", (HISTORY,)),
        ("action", "u1", (HISTORY,)),
        # Number of the newest bucket (event_time // width) of each window; bucket b lies in place b mod buckets.
        *((f"{w.name}_head", "<i4") for w in WINDOWS),
        *((f"{w.name}_count", "<u2", (w.buckets, len(ACTIONS))) for w in WINDOWS),
        ("last_write", "<i8"),  # µs: the Cassandra write time of the user's newest row
    ]
)

States = NDArray[np.void]


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
    """States[U] of U records as kept in Flink; None is a user without state. Raises ValueError on unknown layouts."""
    blank = empty_states(1).tobytes()
    states = np.frombuffer(bytearray(b"".join(r if r is not None else blank for r in records)), USER_STATE)
    if not (states["layout"] == LAYOUT).all():
        raise ValueError(f"state layouts {np.unique(states['layout']).tolist()}; this version reads {LAYOUT}")
    return states


def dump_states(states: States) -> list[bytes]:
    """The records to keep, one a user."""
    raw = states.tobytes()
    size = USER_STATE.itemsize
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def apply_events(states: States, user_index: NDArray[np.int64], clicks: Clicks) -> Applied:
    """Add N events to the states of U users, in place.

    user_index: int64[N], which of the U states each event belongs to. Events may come in any order.
    """
    applied = _merge_rings(states, user_index, clicks)
    fresh = ~applied.duplicate
    for window in WINDOWS:
        _count(states, window, user_index[fresh], clicks.event_time[fresh], clicks.action[fresh])
    return applied


def window_counts(states: States, window: Window) -> NDArray[np.int64]:
    """Events by action in the window that ends with the user's newest event: int64[U, actions]."""
    counts: NDArray[np.int64] = states[f"{window.name}_count"].sum(axis=1, dtype=np.int64)
    return counts


def _merge_rings(states: States, user_index: NDArray[np.int64], clicks: Clicks) -> Applied:
    kept_item, kept_time = states["item"], states["event_time"]
    kept_event, kept_action = states["event"], states["action"]
    held_user, held_place = np.nonzero(kept_item)
    old = len(held_user)
    full = kept_item[:, 0] != 0

    # Old entries first, new ones behind: of equal events the first one stays.
    user = np.concatenate((held_user, user_index))
    time = np.concatenate((kept_time[held_user, held_place], clicks.event_time))
    event = np.concatenate((kept_event[held_user, held_place], clicks.event_hash))
    item = np.concatenate((kept_item[held_user, held_place], clicks.item_hash))
    action = np.concatenate((kept_action[held_user, held_place], clicks.action))

    by_event = np.lexsort((event, user))  # stable: equal events keep their order of arrival
    again = np.zeros(len(user), np.bool_)
    again[by_event[1:]] = (event[by_event[1:]] == event[by_event[:-1]]) & (user[by_event[1:]] == user[by_event[:-1]])

    floor_time, floor_event = kept_time[user_index, 0], kept_event[user_index, 0]
    older = (clicks.event_time < floor_time) | ((clicks.event_time == floor_time) & (clicks.event_hash < floor_event))
    duplicate = again[old:]
    late = full[user_index] & older & ~duplicate

    order = np.lexsort((event, time, user))
    order = order[~again[order]]
    owner = user[order]
    sizes = np.bincount(owner, minlength=len(states))
    ends = np.cumsum(sizes)
    # Place from the right: the newest event of a user lies in place HISTORY - 1.
    place = HISTORY - (ends[owner] - np.arange(len(owner)))
    stays = place >= 0
    owner, place, order = owner[stays], place[stays], order[stays]
    for name, values in (
        ("item", item),
        ("event_time", time),
        ("event", event),
        ("action", action),
    ):
        ring = np.zeros_like(states[name])
        ring[owner, place] = values[order]
        states[name] = ring
    return Applied(duplicate, late)


def _count(
    states: States,
    window: Window,
    user_index: NDArray[np.int64],
    event_time: NDArray[np.int64],
    action: NDArray[np.uint8],
) -> None:
    bucket = event_time // window.width_ms
    head = states[f"{window.name}_head"].astype(np.int64)
    old_head = head.copy()
    np.maximum.at(head, user_index, bucket)
    counts = states[f"{window.name}_count"].astype(np.int64)
    # The bucket that place p stands for under the new head; where it is newer than the old head it starts at 0.
    places = np.arange(window.buckets)
    standing = head[:, None] - (head[:, None] - places) % window.buckets
    counts[standing > old_head[:, None]] = 0
    inside = bucket > head[user_index] - window.buckets
    np.add.at(
        counts,
        (user_index[inside], bucket[inside] % window.buckets, action[inside].astype(np.int64)),
        1,
    )
    states[f"{window.name}_head"] = head
    states[f"{window.name}_count"] = np.minimum(counts, np.iinfo(np.uint16).max)
