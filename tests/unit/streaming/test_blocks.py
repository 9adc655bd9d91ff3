"""Blocks side by side: each with one model, its mask and what is hidden, whatever changes meanwhile."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.release import Stage
from schemas.user_state import dump_states
from streaming.blocks import SIDE_BY_SIDE, Block, Blocks
from streaming.guard import Guard
from streaming.model import Model
from streaming.serving import ModelSlot, Serving
from streaming.wire import split_values
from tests.releases import make_release
from tests.unit.streaming.test_model import CPU, FAVOURITES
from tests.unit.streaming.test_rank import ITEMS, states_of
from tests.unit.streaming.test_wire import TEXTS

# The next model's: other favourites, and more items, so that a mask of the one does not fit the other.
NEXT, MORE = ["item-3", "item-7", "new-2"], [*ITEMS, "new-1", "new-2"]
FIRST, SECOND = "20260101-000001", "20260101-000002"
USERS = [f"user-{n}" for n in range(8)]
RECORDS = dump_states(states_of(*([ITEMS[n]] for n in range(8))))


class Works:
    """Blocks of one user each, and the slot they take from."""

    def __init__(self) -> None:
        self.slot = ModelSlot(CPU, 1, lambda: Guard(0.0))
        self.blocks = Blocks(self.slot, 60, "1.0")

    def offer(self, folder: Path, version: str, stage: Stage = "full") -> None:
        items, favourites = (ITEMS, FAVOURITES) if version == FIRST else (MORE, NEXT)
        release = make_release(folder / version, items, favourites, version)
        assert self.slot.offer(replace(release, stage=stage)).result(60)

    def done(self) -> list[Block]:
        return [block.result(30) for block in self.blocks.ask(USERS, RECORDS)]


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Iterator[Works]:
    monkeypatch.setattr("streaming.model.LARGEST", 1)
    works = Works()
    yield works
    works.blocks.close()
    works.slot.close()


def in_every_run(model: Model, also: Callable[[], Any]) -> None:
    plain = model.session.run

    def run(*arguments: Any) -> Any:
        also()
        return plain(*arguments)

    model.session.run = run


def test_so_many_blocks_are_scored_at_once_and_come_in_their_order(works: Works, tmp_path: Path) -> None:
    works.offer(tmp_path, FIRST)
    works.done()
    assert works.slot.serving.good is not None
    # Nobody passes who is not one of so many.
    in_every_run(works.slot.serving.good, threading.Barrier(SIDE_BY_SIDE, timeout=10).wait)
    found = works.done()
    assert [split_values(block.inserts[0])[0].decode() for block in found] == USERS
    assert [(block.by_model, block.by_trial) for block in found] == [(1, 0)] * len(USERS)


def test_a_model_comes_with_its_mask_for_every_block(
    works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works.offer(tmp_path, FIRST)
    works.done()
    works.blocks.hide({"item-7", "new-2"})
    plain = Blocks._available

    def slow(self: Blocks, serving: Serving) -> Any:
        time.sleep(0.2)
        return plain(self, serving)

    monkeypatch.setattr(Blocks, "_available", slow)
    works.offer(tmp_path, SECOND)
    for block in works.done():
        values = split_values(block.inserts[0])
        assert values[4].decode() == SECOND
        listed = list(TEXTS.from_binary(values[1], 4))
        assert "new-1" in listed and not {"item-7", "new-2"} & set(listed)


def test_one_comparison_at_a_time(works: Works, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works.offer(tmp_path, FIRST)
    works.done()
    works.offer(tmp_path, SECOND, "shadow")
    works.done()
    monkeypatch.setattr(Guard, "due", True)
    begun, first, go_on = [], threading.Event(), threading.Event()

    def compare(self: Guard, *_: Any) -> None:
        begun.append(self)
        first.set()
        assert go_on.wait(10)

    monkeypatch.setattr(Guard, "compare", compare)
    for _ in range(3):
        works.blocks.compare(RECORDS)
    assert first.wait(10)
    # A block goes on beside a comparison that takes long.
    assert len(works.done()) == len(USERS)
    assert len(begun) == 1
    go_on.set()
    deadline = time.monotonic() + 10
    while len(begun) < 2 and time.monotonic() < deadline:
        works.blocks.compare(RECORDS)
        time.sleep(0.01)
    assert len(begun) == 2
