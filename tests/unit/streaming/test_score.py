"""A micro-batch through `score`: rows of all users, block by block, with what belongs to the whole at the end."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.dead_letter import DeadLetter, decode_dead_letter
from schemas.recommendation import SOURCE_MODEL, SOURCE_TRENDING
from schemas.release import ModelRelease, Stage
from schemas.roll_back import RollBack, decode_roll_back
from schemas.user_state import dump_states
from streaming import blocks, model
from streaming.config import Settings, StreamingSection
from streaming.control import Announced, Availability
from streaming.dead_letter import DEAD_LETTERS
from streaming.features import Updated
from streaming.rank import takes
from streaming.score import ROLL_BACKS, Rows, Score
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

    def __init__(self, shared: Any = None) -> None:
        self.context = Counted()
        self.shared = Shared() if shared is None else shared
        self.told: list[tuple[Any, Any]] = []
        section = StreamingSection(providers=["CPUExecutionProvider"], least_overlap=0.2)
        self.operator = Score(Settings(streaming=section))
        self.operator.open(self.context)

    def tell(self, value: Any) -> None:
        self.told += self.operator.process_broadcast_element(value, self.shared)

    def until(self, holds: Callable[[], bool], promise: str) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, f"not so: {promise}"
            time.sleep(0.01)

    @property
    def trial(self) -> tuple[int, int]:
        """Version and share of the trial, as the metrics say."""
        standing = self.context.standing
        return standing["score_trial_version"], standing["score_trial_percent"]

    def rolled_back(self) -> list[RollBack]:
        """What was said on roll-backs so far."""
        found = [decode_roll_back(row[1]) for tag, row in self.told if tag is ROLL_BACKS]
        return [back for back in found if isinstance(back, RollBack)]

    def rows(self, *histories: list[str]) -> list[Rows]:
        records = dump_states(states_of(*histories))
        users = [f"user-{n}" for n in range(len(histories))]
        return self.take(Updated(users, records, [("gone", 7)], np.array([1, 2])))

    def take(self, updated: Updated) -> list[Rows]:
        out = list(self.operator.process_element(updated, self.shared))
        self.told += [each for each in out if not isinstance(each, Rows)]
        return [each for each in out if isinstance(each, Rows)]


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    job.operator.close()


def announce(job: Job, release: ModelRelease) -> ModelRelease:
    job.tell(Announced(release, ("model-releases", 0, 0), b"key", b"value"))
    return release


def serve(job: Job, folder: Path) -> ModelRelease:
    release = announce(job, make_release(folder / "release", ITEMS, FAVOURITES, VERSION))
    job.until(lambda: source(job.rows(["item-3"])[-1].inserts[0]) == SOURCE_MODEL, "the release serves")
    return release


def source(insert: bytes) -> str:
    return split_values(insert)[3].decode()


def ids(insert: bytes) -> list[str]:
    return list(TEXTS.from_binary(split_values(insert)[1], 4))


@pytest.mark.parametrize("block", [1, 2, 3, 256])
def test_all_users_get_their_row_whatever_the_blocks(
    block: int, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(job, tmp_path)
    monkeypatch.setattr(model, "LARGEST", block)
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
    monkeypatch.setattr(blocks, "LARGEST", 2)
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


# ── trials ──────────────────────────────────────────────────────────────────────────────────────

TRIED = "20260204-040506"
# A few places are other ones: what the next cycle makes of it.
NEXT = ["item-3", "item-7", *FAVOURITES[2:]]
# Nothing in the first places is as it was.
MANY = [f"many-{n}" for n in range(100)]


def try_out(job: Job, folder: Path, stage: Stage, percent: int = 100, favourites: list[str] = NEXT) -> ModelRelease:
    release = make_release(folder / f"tried-{stage}-{percent}", ITEMS, favourites, TRIED)
    announce(job, replace(release, stage=stage, percent=percent))
    return on_trial(job, replace(release, stage=stage, percent=percent))


def on_trial(job: Job, release: ModelRelease) -> ModelRelease:
    def tried() -> bool:
        job.rows(["item-3"])
        return job.trial == (int(TRIED.replace("-", "")), release.share)

    job.until(tried, f"{release.stage} {release.share} is on trial")
    return release


def versions(job: Job, count: int = 400) -> list[str]:
    """The model of each of many users' rows, every row being wholly of it."""
    histories = [[ITEMS[n % len(ITEMS)]] for n in range(count)]
    found = []
    for insert, [had] in zip((i for rows in job.rows(*histories) for i in rows.inserts), histories, strict=True):
        version = split_values(insert)[4].decode()
        order = {VERSION: FAVOURITES, TRIED: NEXT}[version]
        assert ids(insert) == [i for i in [*order, *(o for o in ITEMS if o not in order)] if i != had]
        found.append(version)
    return found


def test_a_shadow_is_compared_and_never_written(job: Job, tmp_path: Path) -> None:
    serve(job, tmp_path)
    try_out(job, tmp_path, "shadow")
    before = job.context.standing["score_compared"]
    assert set(versions(job)) == {VERSION}

    def compared() -> bool:
        job.rows(*([item] for item in ITEMS))
        return job.context.standing["score_compared"] > before

    job.until(compared, "users are compared")
    assert job.context.standing["score_by_trial"] == 0
    assert job.context.standing["score_model_version"] == int(VERSION.replace("-", ""))


def test_a_canary_serves_its_share_always_the_same_users_and_a_larger_one_those_too(job: Job, tmp_path: Path) -> None:
    serve(job, tmp_path)
    release = try_out(job, tmp_path, "canary", 20)
    served: dict[int, set[int]] = {}
    for percent in (20, 50):
        announce(job, replace(release, percent=percent))
        on_trial(job, replace(release, percent=percent))
        first, again = versions(job), versions(job)
        assert first == again
        served[percent] = {user for user, version in enumerate(first) if version == TRIED}
        assert abs(len(served[percent]) / len(first) - percent / 100) < 0.07
    assert served[20] < served[50]
    counted = dict(job.context.standing)
    found = versions(job)
    now = job.context.standing
    assert now["score_by_trial"] - counted["score_by_trial"] == found.count(TRIED)
    assert now["score_by_model"] - counted["score_by_model"] == found.count(VERSION)


def test_each_release_draws_its_own_users() -> None:
    users = [f"user-{n}" for n in range(20_000)]
    releases = [ModelRelease("v", "u", digest * 32, 1, "canary", 10) for digest in ("0f", "a5")]
    first, second = (takes(release, users) for release in releases)
    for taken in (first, second):
        assert abs(taken.mean() - 0.1) < 0.01
    assert (first & second).mean() < 0.05
    assert (takes(releases[0], users[::-1])[::-1] == first).all(), "whom they come with does not matter"
    for percent, share in ((0, 0.0), (1, 0.01), (99, 0.99)):
        assert abs(takes(replace(releases[0], percent=percent), users).mean() - share) < 0.003


def test_a_canary_is_promoted_without_being_loaded_again(job: Job, tmp_path: Path) -> None:
    serve(job, tmp_path)
    release = try_out(job, tmp_path, "canary", 20)
    (tmp_path / "tried-canary-20" / "model.onnx").unlink()
    announce(job, replace(release, stage="full", percent=100))
    job.until(lambda: set(versions(job, 50)) == {TRIED}, "all are served by it")
    assert job.context.standing["score_model_version"] == int(TRIED.replace("-", ""))


def test_what_the_guard_finds_ends_the_trial_and_is_said_and_stays_so(job: Job, tmp_path: Path) -> None:
    good = announce(job, make_release(tmp_path / "good", MANY, MANY, VERSION))
    job.until(lambda: source(job.rows(["many-3"])[-1].inserts[0]) == SOURCE_MODEL, "the good one serves")
    bad = replace(make_release(tmp_path / "bad", MANY, MANY[::-1], TRIED), stage="full")
    announce(job, bad)
    job.until(lambda: rows_of(job) == {TRIED}, "the bad one serves")
    job.until(lambda: rows_of(job) == {VERSION}, "the good one serves again")
    job.until(lambda: bool(job.rows(["many-3"]) and job.rolled_back()), "it is said")
    [back] = job.rolled_back()
    assert (back.version, back.manifest_sha256) == (TRIED, bad.manifest_sha256)
    assert back.reason.startswith("overlap: 0.0% of the first 10 are common, 20.0% are asked")
    assert job.context.standing["score_rolled_back"] == 1
    assert job.trial == (0, 0)
    # It comes back through Kafka, to this scorer too, and is kept.
    job.tell(back)
    for again in (job, Job(job.shared)):
        announce(again, bad)
        again.until(lambda again=again: bool(again.rows(["many-3"]) and refusals(again)), "it is refused")  # type: ignore[misc]
        assert "was rolled back by the job" in refusals(again)[0]
        assert rows_of(again) == {VERSION}
    assert good.manifest_sha256 not in job.shared["blocked"]


def rows_of(job: Job) -> set[str]:
    inserts = job.rows(*([item] for item in MANY[:40]))[-1].inserts
    return {split_values(insert)[4].decode() for insert in inserts}


def refusals(job: Job) -> list[str]:
    letters = [decode_dead_letter(row[1]) for tag, row in job.told if tag is DEAD_LETTERS]
    return [letter.detail for letter in letters if isinstance(letter, DeadLetter)]


def test_what_another_scorer_found_holds_here_too(job: Job, tmp_path: Path) -> None:
    serve(job, tmp_path)
    release = try_out(job, tmp_path, "full")
    assert set(versions(job, 50)) == {TRIED}
    job.tell(RollBack(TRIED, release.manifest_sha256, "overlap", 1, "1"))
    assert set(versions(job, 50)) == {VERSION}
    assert job.rolled_back() == [], "it was said already"


def test_a_trial_that_cannot_score_costs_no_row(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(job, tmp_path)
    release = try_out(job, tmp_path, "canary", 50)
    trial = job.operator._slot.serving.trial
    assert trial is not None

    class Broken:
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

        def run(self, *_: Any) -> Any:
            raise RuntimeError("CUDA failure 700\nillegal address")

    trial.model.session = Broken()
    assert set(versions(job, 100)) == {VERSION}
    job.until(lambda: bool(job.rows(["item-3"]) and job.rolled_back()), "it is said")
    assert job.rolled_back()[0].manifest_sha256 == release.manifest_sha256
    assert "RuntimeError: CUDA failure 700 illegal address" in job.rolled_back()[0].reason


def test_after_a_restart_the_same_serve_the_same_users(job: Job, tmp_path: Path) -> None:
    serve(job, tmp_path)
    release = try_out(job, tmp_path, "canary", 30)
    before = versions(job)
    again = Job(job.shared)
    assert source(again.rows(["item-3"])[-1].inserts[0]) == SOURCE_MODEL, "the good one is there with the first row"
    on_trial(again, release)
    assert versions(again) == before
    again.operator.close()


def test_many_steps_of_a_trial_do_not_push_out_what_serves(job: Job, tmp_path: Path) -> None:
    serve(job, tmp_path)
    release = try_out(job, tmp_path, "canary", 1)
    for percent in range(2, 15):
        announce(job, replace(release, percent=percent))
    again = Job(job.shared)
    assert source(again.rows(["item-3"])[-1].inserts[0]) == SOURCE_MODEL
    on_trial(again, replace(release, percent=14))
    again.operator.close()
