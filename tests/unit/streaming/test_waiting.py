"""Who waits, waits once, in their order, and no longer than promised."""

import numpy as np
import pytest

from streaming import waiting
from streaming.waiting import HOLD_MS, LOOK_MS, Hold, Waiting
from tests.unit.streaming.test_users import Kept


def add(some: Waiting, *users: str, produced: int = 1) -> None:
    """A micro-batch with one event of each of them."""
    some.add(list(users), np.arange(len(users)), np.full(len(users), produced))


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


def test_rows_wait_for_as_long_as_something_old_comes_but_not_longer_than_promised() -> None:
    hold = Hold(0)
    for now in range(0, HOLD_MS, LOOK_MS):
        hold.old_came(1000 + now / 1000)
        assert not hold.over(1000 + now / 1000, 0)
    hold.old_came(1000 + HOLD_MS / 1000)
    assert hold.over(1000 + HOLD_MS / 1000, 0)
    assert not hold.over(1000 + HOLD_MS / 1000, 0), "the next time begins anew"


@pytest.mark.parametrize("quiet_ms", [0, 40, 1500])
def test_rows_are_made_when_nothing_old_has_come_for_a_while(quiet_ms: int) -> None:
    hold, pause_s = Hold(quiet_ms), max(quiet_ms, LOOK_MS) / 1000
    hold.old_came(50.0)
    assert not hold.over(50.0 + pause_s * 0.99, 0)
    assert hold.over(50.0 + pause_s * 1.01, 0)
    assert hold.over(50.0 + pause_s * 1.01, 0), "nothing holds back who came since"


def test_a_busy_thread_does_not_take_its_own_pause_for_the_end() -> None:
    hold = Hold(0)
    hold.old_came(50.0)
    assert not hold.over(50.9, 800)
    assert hold.over(50.91, 1)
    hold.old_came(60.0)
    assert not hold.over(60.9, 800)
    assert hold.over(61.1, 100), "but at some time it does, should every look be late"


def test_rows_do_not_wait_longer_than_promised_be_the_thread_ever_so_busy() -> None:
    hold = Hold(0)
    for second in range(HOLD_MS // 1000):
        hold.old_came(50.0 + second)
        assert not hold.over(50.0 + second, 900)
    assert hold.over(50.0 + HOLD_MS / 1000, 900)


def test_who_comes_while_rows_are_made_waits_for_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a shard that gets more than it can score would never take in events again."""
    monkeypatch.setattr(waiting, "PIECE", 1)
    some = Waiting(Kept())
    add(some, "ann", "bob")
    assert not some.going
    some.go()
    assert some.take()[0] == ["ann"]
    add(some, "cy")
    assert some.going
    assert some.take()[0] == ["bob"]
    assert not some.going
    some.go()
    assert (some.take()[0], some.going) == (["cy"], False)
    some.go()
    assert not some.going, "there is nobody"


def test_a_large_micro_batch_goes_in_pieces() -> None:
    some = Waiting(Kept())
    users = [f"u{number}" for number in range(2 * waiting.PIECE + 1)]
    add(some, *users)
    pieces = [some.take()[0] for _ in range(3)]
    assert [len(piece) for piece in pieces] == [waiting.PIECE, waiting.PIECE, 1]
    assert [user for piece in pieces for user in piece] == users
