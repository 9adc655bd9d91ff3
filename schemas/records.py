"""Users' states as the records that are kept in Flink, and back; old layouts are read, the newest one is written.

A record is a state up to the last event of its ring: who has few events has a short record.
"""

from collections.abc import Sequence

import numpy as np

from schemas.click import ACTIONS
from schemas.user_state import EVENT, HISTORY, LAYOUT, RING_BYTES, RING_START, USER_STATE, WINDOWS, States, empty_states

_SIZE = USER_STATE.itemsize
_BLANK = empty_states(1).tobytes()

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


def load_states(records: Sequence[bytes | None]) -> States:
    """States[U] of U records as kept in Flink; None is a user without state. Raises ValueError on what is no record."""
    full = [_BLANK if record is None else record.ljust(_SIZE, b"\0") for record in records]
    lengths = np.fromiter((RING_START if record is None else len(record) for record in records), np.int64, len(full))
    broken = (lengths < RING_START) | (lengths > RING_START + RING_BYTES)
    broken |= (lengths - RING_START) % EVENT.itemsize != 0
    broken &= lengths != _LAYOUT_1.itemsize
    if broken.any():
        raise ValueError(f"a state has {lengths[broken][0]} bytes, which is no whole number of events")
    states = np.frombuffer(bytearray().join(full), USER_STATE)
    for index in np.flatnonzero(states["layout"] != LAYOUT).tolist():
        if states["layout"][index] != 1 or lengths[index] != _LAYOUT_1.itemsize:
            raise ValueError(f"a state has layout {states['layout'][index]}; this version reads 1 to {LAYOUT}")
        states[index] = _from_layout_1(full[index][: _LAYOUT_1.itemsize])
    return states


def dump_states(states: States) -> list[bytes]:
    """The records to keep, one a user."""
    raw = states.tobytes()
    events = np.count_nonzero(states["ring"]["item"], axis=1)
    starts = np.arange(len(states)) * _SIZE
    ends = starts + RING_START + EVENT.itemsize * events
    return [raw[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def _from_layout_1(record: bytes) -> np.void:
    [old] = np.frombuffer(record, _LAYOUT_1)
    state: np.void = empty_states(1)[0]
    for name in ("head", "count", "last_write"):
        state[name] = old[name]
    for name in EVENT.names or ():
        state["ring"][name] = old[name][::-1]
    return state
