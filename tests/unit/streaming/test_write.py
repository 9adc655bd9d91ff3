"""Batches are all answered before the call returns, few of them at a time, and what fails is named."""

from typing import Any

import pytest

from streaming import write
from streaming.wire_batch import Statements, WireBatch
from streaming.write import send


class Answers:
    """A session whose requests end as they are told, counting how many are open."""

    def __init__(self, refused: set[int]) -> None:
        self.refused = refused
        self.open = self.most_open = 0
        self.sent: list[WireBatch] = []

    def execute_async(self, batch: WireBatch) -> "_Answer":
        self.sent.append(batch)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return _Answer(self, len(self.sent) - 1 in self.refused)


class _Answer:
    def __init__(self, session: Answers, refused: bool) -> None:
        self._session, self._refused = session, refused

    def result(self) -> None:
        self._session.open -= 1
        if self._refused:
            raise TimeoutError("too slow")


def batches(count: int) -> list[WireBatch]:
    return [WireBatch(Statements(b"name", [b"\0\0"]), "shop", b"key") for _ in range(count)]


@pytest.mark.parametrize("count", [0, 1, write.IN_FLIGHT, 5 * write.IN_FLIGHT + 3])
def test_all_are_answered_and_few_are_open_at_a_time(count: int) -> None:
    session: Any = Answers(set())
    wanted = batches(count)
    assert send(session, iter(wanted)) == (count, [], "")
    assert (session.sent, session.open) == (wanted, 0)
    assert session.most_open == min(count, write.IN_FLIGHT)


def test_what_is_not_taken_is_returned_and_the_others_are_taken() -> None:
    session: Any = Answers({0, 7, 39})
    wanted = batches(40)
    taken, failed, reason = send(session, wanted)
    assert (taken, failed) == (37, [wanted[0], wanted[7], wanted[39]])
    assert reason == "TimeoutError: too slow"
