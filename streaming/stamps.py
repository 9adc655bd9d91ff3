"""stamps: the write time of a row follows from the events it knows, not from the clock that writes it.

A user's row is stamped with the place of the user's newest event in the user's own sequence: the time at which it was
produced, or one STEP after the event before it, whichever is later. So the same events bear the same stamps, whoever
processes them, however often and in whatever micro-batches. Cassandra keeps the row of the highest stamp, hence
    what a restarted job writes again, older than what is there, loses until it has caught up: no row goes back;
    a worker that was thought dead and writes late loses against the one that took its place and has gone further;
    a second job, or a machine whose clock is wrong, changes nothing.
Cassandra would mix two rows of one and the same stamp, cell by cell. Two attempts at the same events may differ (a
model came in between), so each attempt adds a tag of its own, smaller than a STEP.
"""

import time

import numpy as np
from numpy.typing import NDArray

from schemas.compiled import Address, Compiled, carray

# µs between two events of one user, a part of a ms. Smaller: fewer tags. Larger: a user with more than a million / STEP
# events a second would be ahead of time, which harms nobody but is erased late.
STEP = 100


def attempt_tag() -> int:
    """The tag of an attempt that begins now: the second of its start, so that the next one has another."""
    return int(time.time()) % STEP


def next_stamps(
    last: NDArray[np.int64], user_index: NDArray[np.int64], produced_ms: NDArray[np.int64], tag: int
) -> NDArray[np.int64]:
    """The stamps of U users after N more events: int64[U] µs; users without an event keep theirs.

    last: int64[U], stamps before, of any attempt. user_index: int64[N] into them, each user's events in their order.
    """
    stamps = last.copy()
    _advance(stamps, len(stamps), user_index, produced_ms, len(user_index), tag)
    return stamps


@Compiled
def _advance(stamps_at: Address, users: int, user_at: Address, produced_at: Address, events: int, tag: int) -> None:
    stamps = carray(stamps_at, users, np.int64)
    user, produced = carray(user_at, events, np.int64), carray(produced_at, events, np.int64)
    for event in range(events):
        last = stamps[user[event]]
        stamps[user[event]] = max(last - last % STEP + STEP, produced[event] * 1000) + tag


def retagged(stamps: NDArray[np.int64], tag: int) -> NDArray[np.int64]:
    """These stamps int64[U], of whatever attempt, as those of the attempt with this tag."""
    return stamps - stamps % STEP + tag


def delete_stamp(last: int, erased_ms: int, tag: int) -> int:
    """The stamp of a row's deletion, µs: right after the row's own; by the erasure's time for a user nobody knows."""
    return last - last % STEP + STEP + tag if last else erased_ms * 1000 + tag
