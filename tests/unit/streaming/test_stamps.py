"""A row's stamp follows from the user's events alone: whoever processes them, and in whatever pieces."""

import random
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streaming.stamps import STEP, delete_stamp, next_stamps

NOW_MS = 1_800_000_000_000


def stamped(pieces: list[list[tuple[int, int]]], users: int, tag: int) -> list[NDArray[np.int64]]:
    """Stamps after each piece of (user, produced ms)."""
    last = np.zeros(users, np.int64)
    found = []
    for piece in pieces:
        index, produced = (np.array(column, np.int64) for column in zip(*piece, strict=True))
        last = next_stamps(last, index, produced, tag)
        found.append(last)
    return found


def test_the_same_events_bear_the_same_stamps_in_whatever_pieces_they_come() -> None:
    chance = random.Random(1)
    # Many in one millisecond, and clocks that go back.
    events = [(chance.randrange(5), NOW_MS + chance.randrange(20) - 10) for _ in range(400)]
    for _ in range(50):
        cuts = sorted({0, 400, *(chance.randrange(1, 400) for _ in range(chance.randrange(40)))})
        pieces = [events[a:b] for a, b in pairwise(cuts)]
        assert (stamped(pieces, 5, 7)[-1] == stamped([events], 5, 7)[-1]).all()


def test_an_attempt_that_is_behind_loses_and_one_at_the_same_events_never_ties() -> None:
    events = [[(0, NOW_MS)] for _ in range(30)]
    one, other = stamped(events, 1, 99), stamped(events, 1, 3)
    for place in range(29):
        assert one[place][0] < other[place + 1][0] and other[place][0] < one[place + 1][0]
        assert one[place][0] != other[place][0]


def test_a_user_without_an_event_keeps_the_stamp_and_any_other_gets_a_higher_one() -> None:
    before = np.array([NOW_MS * 1000 + 42, (NOW_MS + 3_600_000) * 1000 + 42], np.int64)
    after = next_stamps(before, np.array([1, 1]), np.array([NOW_MS, NOW_MS]), 7)
    assert after[0] == before[0]
    # An hour ahead of the producer's clock, as after one that was wrong: on it goes from there.
    assert after[1] == before[1] - 42 + 2 * STEP + 7


def test_a_deletion_comes_right_after_the_row_it_deletes_whatever_the_clocks_say() -> None:
    [[last]] = stamped([[(0, NOW_MS)]], 1, 99)
    deleted = delete_stamp(int(last), NOW_MS - 3_600_000, 0)
    assert last < deleted < NOW_MS * 1000 + 1000
    assert delete_stamp(0, NOW_MS, 5) == NOW_MS * 1000 + 5
