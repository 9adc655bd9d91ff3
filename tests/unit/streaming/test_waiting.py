"""Who waits, waits once, in their order, and no longer than promised."""

import numpy as np
import pytest

from streaming import waiting
from streaming.waiting import HOLD_MS, LOOK_MS, Waiting
from tests.unit.streaming.test_users import Kept


def add(some: Waiting, *users: str, behind: bool = True, produced: int = 1) -> None:
    """A micro-batch with one event of each of them."""
    some.add(list(users), np.arange(len(users)), np.full(len(users), produced), behind)


def test_a_user_waits_once_and_who_came_first_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PIECE", 3)
    some = Waiting(Kept())
    add(some, "ann", "bob", produced=1)
    add(some, "bob", "cy", "dan", "eve", "fay", produced=2)
    assert len(some) == 6
    users, produced = some.take()
    assert (users, sorted(produced.tolist())) == (["ann", "bob"], [1, 1, 2]), "bob's second event shows in his row, too"
    add(some, "ann", produced=3)
    assert some.take()[0] == ["cy", "dan", "eve"]
    users, produced = some.take()
    assert (users, produced.tolist()) == (["fay", "ann"], [2, 3])
    assert not some


def test_after_a_restart_the_same_users_wait_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PIECE", 2)
    kept = Kept()
    some = Waiting(kept)
    for number in range(12):
        add(some, f"u{number}")
    assert some.take()[0] == ["u0", "u1"]
    again = Waiting(Kept(reversed(kept.items())))  # a map has no order
    add(again, "u3", "new")
    found = []
    while again:
        found += again.take()[0]
    assert found == [*(f"u{number}" for number in range(2, 12)), "new"]


def test_rows_wait_while_their_shard_is_behind_but_not_longer_than_promised() -> None:
    some = Waiting(Kept())
    for now in range(0, HOLD_MS, LOOK_MS):
        add(some, "ann", f"u{now}")
        assert not some.due(1_000_000 + now)
    add(some, "ann")
    assert some.due(1_000_000 + HOLD_MS)


def test_rows_are_made_once_their_shard_has_caught_up() -> None:
    some = Waiting(Kept())
    add(some, "ann")
    assert not some.due(0)
    add(some, "bob", behind=False)
    assert some.due(LOOK_MS)


def test_rows_are_made_when_nothing_comes_any_more() -> None:
    some = Waiting(Kept())
    add(some, "ann")
    assert not some.due(0)
    assert some.due(LOOK_MS)


def test_who_comes_while_rows_are_made_waits_for_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a shard that gets more than it can score would never take in events again."""
    monkeypatch.setattr(waiting, "PIECE", 1)
    some = Waiting(Kept())
    add(some, "ann", "bob", behind=False)
    assert some.due(0)
    assert some.take()[0] == ["ann"]
    add(some, "cy")
    assert some.going
    assert some.take()[0] == ["bob"]
    assert not some.going
    add(some, "dan")
    assert not some.due(LOOK_MS)


def test_a_large_micro_batch_goes_in_pieces() -> None:
    some = Waiting(Kept())
    users = [f"u{number}" for number in range(2 * waiting.PIECE + 1)]
    add(some, *users)
    pieces = [some.take()[0] for _ in range(3)]
    assert [len(piece) for piece in pieces] == [waiting.PIECE, waiting.PIECE, 1]
    assert [user for piece in pieces for user in piece] == users
