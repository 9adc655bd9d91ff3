"""States lie in Flink; what is remembered beside them is never another one."""

import random
from typing import Any

import pytest

from streaming.users import OVERHEAD_BYTES, Users


class Kept(dict[Any, Any]):
    """Flink's map state, in memory, counting how often it is asked."""

    reads = 0
    trips = 0

    def get(self, key: Any, default: Any = None) -> Any:
        self.reads += 1
        return super().get(key, default)

    def put(self, key: Any, value: Any) -> None:
        self[key] = value

    def put_all(self, records: dict[Any, Any]) -> None:
        self.trips += 1
        self.update(records)

    def remove(self, key: Any) -> None:
        self.pop(key, None)


def test_what_was_written_lies_in_flink_before_the_call_returns() -> None:
    kept = Kept()
    Users(kept).write({"ann": b"1", "bob": b"2"})
    assert (dict(kept), kept.trips) == ({"ann": b"1", "bob": b"2"}, 1)


def test_who_was_met_lately_is_not_read_again() -> None:
    kept = Kept(ann=b"1")
    users = Users(kept)
    assert users.read(["ann", "new"]) == [b"1", None]
    users.write({"ann": b"2", "new": b"3"})
    asked = kept.reads
    assert users.read(["new", "ann"]) == [b"3", b"2"]
    assert kept.reads == asked


def test_a_forgotten_user_is_gone_from_both() -> None:
    kept = Kept()
    users = Users(kept)
    users.write({"ann": b"1"})
    users.forget("ann")
    assert (users.read(["ann"]), dict(kept)) == ([None], {})


@pytest.mark.parametrize("generation", [1, 3, 1000])  # users
def test_any_sequence_of_calls_reads_what_flink_holds_and_few_are_remembered(generation: int) -> None:
    chance = random.Random(generation)
    kept = Kept()
    users = Users(kept, generation * (OVERHEAD_BYTES + 4))
    for step in range(2000):
        names = [f"u{chance.randrange(20)}" for _ in range(3)]
        assert users.read(names) == [dict(kept).get(name) for name in names]
        if chance.random() < 0.3:
            users.forget(names[0])
        else:
            users.write(dict.fromkeys(names, b"%d" % step))
        assert users.remembered <= 2 * (generation + len(names))
