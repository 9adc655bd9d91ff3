"""A micro-batch through `score`: rows of all users, block by block, with what belongs to the whole at the end."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.recommendation import SOURCE_MODEL, SOURCE_TRENDING
from schemas.user_state import dump_states
from streaming import score
from streaming.config import Settings, StreamingSection
from streaming.control import Announced, Availability
from streaming.features import Updated
from streaming.score import Rows, Score
from streaming.trending import Trending
from streaming.wire import split_values
from tests.releases import make_release
from tests.unit.streaming.test_metrics import Counted
from tests.unit.streaming.test_rank import FAVOURITES, ITEMS, states_of
from tests.unit.streaming.test_wire import TEXTS

VERSION = "20260203-040506"


class Shared(dict[str, Any]):
    """Flink's broadcast state, in memory."""

    def put(self, name: str, value: Any) -> None:
        self[name] = value

    def remove(self, name: str) -> None:
        del self[name]

    def get_broadcast_state(self, _: Any) -> "Shared":
        return self


class Job:
    """The operator, opened."""

    def __init__(self) -> None:
        self.context = Counted()
        self.shared: Any = Shared()
        self.operator = Score(Settings(streaming=StreamingSection(providers=["CPUExecutionProvider"])))
        self.operator.open(self.context)

    def tell(self, value: Any) -> None:
        list(self.operator.process_broadcast_element(value, self.shared))

    def rows(self, *histories: list[str]) -> list[Rows]:
        records = dump_states(states_of(*histories))
        users = [f"user-{n}" for n in range(len(histories))]
        return self.take(Updated(users, records, [("gone", 7)], np.array([1, 2])))

    def take(self, updated: Updated) -> list[Rows]:
        return list(self.operator.process_element(updated, self.shared))


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    job.operator.close()


def serve(job: Job, folder: Path) -> None:
    release = make_release(folder / "release", ITEMS, FAVOURITES, VERSION)
    job.tell(Announced(release, ("model-releases", 0, 0), b"key", b"value"))
    deadline = time.monotonic() + 30
    while source(job.rows(["item-3"])[-1].inserts[0]) != SOURCE_MODEL:
        assert time.monotonic() < deadline, "the release does not serve"
        time.sleep(0.01)


def source(insert: bytes) -> str:
    return split_values(insert)[3].decode()


def ids(insert: bytes) -> list[str]:
    return list(TEXTS.from_binary(split_values(insert)[1], 4))


@pytest.mark.parametrize("block", [1, 2, 3, 256])
def test_all_users_get_their_row_whatever_the_blocks(
    block: int, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(job, tmp_path)
    monkeypatch.setattr(score, "BLOCK", block)
    before = dict(job.context.standing)
    found = job.rows(*([item] for item in ITEMS[:6]))
    inserts = [insert for rows in found for insert in rows.inserts]
    assert [split_values(insert)[0].decode() for insert in inserts] == [f"user-{n}" for n in range(6)]
    for item, insert in zip(ITEMS, inserts, strict=False):
        order = FAVOURITES + [other for other in ITEMS if other not in FAVOURITES]
        assert ids(insert) == [other for other in order if other != item]
        assert split_values(insert)[4].decode() == VERSION
    counted = {name: value - before[name] for name, value in job.context.standing.items()}
    assert (counted["score_users"], counted["score_by_model"], counted["score_by_trending"]) == (6, 6, 0)


def test_what_concerns_the_whole_micro_batch_comes_with_its_last_rows(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "BLOCK", 2)
    *first, last = job.rows(["a"], ["b"], ["c"])
    assert [(rows.erased, len(rows.produced)) for rows in first] == [([], 0)]
    assert (last.erased, last.produced.tolist(), len(last.inserts)) == ([("gone", 7)], [1, 2], 1)


def test_an_erasure_alone_goes_on() -> None:
    job = Job()
    [rows] = job.take(Updated([], [], [("gone", 7)], np.zeros(0, np.int64)))
    assert (rows.inserts, rows.erased) == ([], [("gone", 7)])


def test_without_a_model_users_get_what_is_trending_and_may_be_shown(job: Job) -> None:
    job.tell(Trending(["hit", "gone"], [9, 5], 1))
    job.tell(Availability({"gone": False}))
    [rows] = job.rows(["a"])
    assert (source(rows.inserts[0]), ids(rows.inserts[0])) == (SOURCE_TRENDING, ["hit"])


def test_what_is_not_available_leaves_the_lists_and_comes_back(job: Job, tmp_path: Path) -> None:
    serve(job, tmp_path)
    job.tell(Availability({"item-7": False, "unheard-of": False}))
    assert ids(job.rows(["item-3"])[-1].inserts[0])[0] == "item-9"
    job.tell(Availability({"item-7": True}))
    assert ids(job.rows(["item-3"])[-1].inserts[0])[0] == "item-7"
