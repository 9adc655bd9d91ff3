"""Which model serves whom: releases come, are tried, pass, are rolled back; what served goes on until then."""

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ModelRefused
from schemas.release import ModelRelease, Stage
from streaming import serving
from streaming.guard import Guard
from streaming.model import Model, load
from streaming.serving import ModelSlot, Serving
from tests.releases import make_release
from tests.unit.streaming.test_model import CPU, FAVOURITES, ITEMS

MakeRelease = Callable[..., ModelRelease]


class Patience(Guard):
    """A guard whose probation ends when the test says so."""

    over = False

    @property
    def passed(self) -> bool:
        return Patience.over


@pytest.fixture
def slot() -> Iterator[ModelSlot]:
    Patience.over = False
    slot = ModelSlot(CPU, 1, lambda: Patience(0.0))
    yield slot
    slot.close()


@pytest.fixture
def release(tmp_path: Path) -> MakeRelease:
    def make(number: int, stage: Stage = "full", percent: int = 100, **files: Any) -> ModelRelease:
        folder, version = tmp_path / f"{number}", f"20260101-00000{number}"
        return replace(make_release(folder, ITEMS, FAVOURITES, version, **files), stage=stage, percent=percent)

    return make


def serve(slot: ModelSlot, *releases: ModelRelease) -> Serving:
    for each in releases:
        assert slot.offer(each).result(60) is True
        slot.take()
    return slot.serving


def numbers(serving: Serving) -> tuple[int | None, int | None, int]:
    """The good model's number, the trial's, and the trial's share."""
    good, trial = serving
    return (
        int(good.manifest.version[-1]) if good is not None else None,
        int(trial.model.manifest.version[-1]) if trial is not None else None,
        trial.release.share if trial is not None else 0,
    )


def pass_probation(slot: ModelSlot) -> Serving:
    Patience.over = True
    found, _ = slot.take()
    Patience.over = False
    return found


def counted_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    loaded: list[str] = []

    def noted(release: ModelRelease, *others: Any) -> Model:
        loaded.append(release.version[-1])
        return load(release, *others)

    monkeypatch.setattr(serving, "load", noted)
    return loaded


def test_the_first_model_goes_into_service_when_it_is_taken(slot: ModelSlot, release: MakeRelease) -> None:
    assert numbers(slot.take()[0]) == (None, None, 0)
    assert slot.offer(release(1)).result(60) is True
    assert slot.serving.good is None
    found, changed = slot.take()
    assert (numbers(found), changed) == ((1, None, 0), True)
    assert slot.take() == (found, False)


def test_a_refused_release_leaves_what_serves(slot: ModelSlot, release: MakeRelease) -> None:
    before = serve(slot, release(1), release(2, "canary", 20))
    bad = release(3, model=b"hello")
    assert slot.offer(bad).result(60) is False
    refused, error = slot.refused.get_nowait()
    assert refused == bad
    assert "model.onnx of release 20260101-000003" in str(error)
    assert slot.refused.empty()
    assert numbers(slot.take()[0])[0] == numbers(before)[0] == 1


def test_a_damaged_release_does_not_even_end_a_trial(slot: ModelSlot, release: MakeRelease, tmp_path: Path) -> None:
    before = serve(slot, release(1), release(2, "canary", 20))
    damaged = release(3)
    (tmp_path / "3" / "items").write_text("")
    assert slot.offer(damaged).result(60) is False
    assert slot.take() == (before, False)


# ── stages ──────────────────────────────────────────────────────────────────────────────────────


def test_shadow_canary_and_full_are_one_trial_with_one_model(
    slot: ModelSlot, release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(slot, release(1))
    loaded = counted_loads(monkeypatch)
    tried = release(2, "shadow")
    assert numbers(serve(slot, tried)) == (1, 2, 0)
    guard = slot.serving.trial.guard if slot.serving.trial else None
    assert numbers(serve(slot, replace(tried, stage="canary", percent=5))) == (1, 2, 5)
    assert numbers(serve(slot, replace(tried, stage="canary", percent=50))) == (1, 2, 50)
    assert numbers(serve(slot, replace(tried, stage="full"))) == (1, 2, 100)
    assert slot.serving.trial is not None and slot.serving.trial.guard is guard
    assert numbers(pass_probation(slot)) == (2, None, 0)
    assert loaded == ["2"]


def test_a_full_release_is_watched_until_it_has_proven_itself(slot: ModelSlot, release: MakeRelease) -> None:
    first, second = release(1), release(2)
    assert numbers(serve(slot, first, second)) == (1, 2, 100)
    assert slot.serving.main is not None and slot.serving.main.digest == second.manifest_sha256
    assert numbers(pass_probation(slot)) == (2, None, 0)
    # Who was good once needs no trial.
    assert numbers(serve(slot, first)) == (1, None, 0)
    assert numbers(serve(slot, second)) == (2, None, 0)


def test_shadow_and_canary_never_pass_by_themselves(slot: ModelSlot, release: MakeRelease) -> None:
    serve(slot, release(1), release(2, "shadow"))
    assert numbers(pass_probation(slot)) == (1, 2, 0)
    serve(slot, release(2, "canary", 99))
    assert numbers(pass_probation(slot)) == (1, 2, 99)


def test_the_served_release_announced_again_ends_a_trial(slot: ModelSlot, release: MakeRelease) -> None:
    assert numbers(serve(slot, release(1), release(2, "canary", 5), release(1))) == (1, None, 0)


def test_a_trial_of_what_serves_already_is_none(slot: ModelSlot, release: MakeRelease) -> None:
    assert numbers(serve(slot, release(1), release(1, "canary", 5))) == (1, None, 0)


# ── going back ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("stage", "percent"), [("shadow", 100), ("canary", 50), ("full", 100)])
def test_a_trial_that_is_rolled_back_leaves_the_good_model_at_once_and_is_never_served_again(
    stage: Stage, percent: int, slot: ModelSlot, release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = release(2, stage, percent)
    serve(slot, release(1), bad)
    loaded = counted_loads(monkeypatch)
    assert slot.roll_back(bad.manifest_sha256) is True
    assert numbers(slot.serving) == (1, None, 0)
    assert slot.offer(replace(bad, stage="full")).result(60) is False
    assert numbers(slot.take()[0]) == (1, None, 0)
    _, error = slot.refused.get_nowait()
    assert "was rolled back by the job" in str(error)
    assert loaded == []


def test_what_passed_can_still_be_rolled_back_and_the_model_before_is_there(
    slot: ModelSlot, release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(slot, release(1), release(2))
    pass_probation(slot)
    loaded = counted_loads(monkeypatch)
    assert slot.roll_back(release(2).manifest_sha256) is True
    assert (numbers(slot.serving), loaded) == ((1, None, 0), [])


def test_a_roll_back_of_what_is_not_served_changes_nothing_but_keeps_it_out(
    slot: ModelSlot, release: MakeRelease
) -> None:
    serve(slot, release(1))
    waiting = slot.offer(release(2))
    waiting.result(60)
    assert slot.roll_back(release(2).manifest_sha256) is False
    assert numbers(slot.take()[0]) == (1, None, 0)


def test_a_roll_back_to_the_model_before_waits_for_nothing(
    slot: ModelSlot, release: MakeRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = counted_loads(monkeypatch)
    first, second, third = (release(n) for n in (1, 2, 3))
    serve(slot, first, second)
    pass_probation(slot)
    (tmp_path / "1" / "model.onnx").unlink()
    assert numbers(serve(slot, first)) == (1, None, 0)
    assert numbers(serve(slot, second)) == (2, None, 0)  # and forth again
    before = slot.serving
    assert numbers(serve(slot, second)) == numbers(before)  # said twice
    assert loaded == ["1", "2"]
    assert numbers(serve(slot, third)) == (2, 3, 100)
    assert numbers(serve(slot, second)) == (2, None, 0)
    assert slot.offer(first).result(60) is False  # let go since, and its folder is not whole any more


# ── loading ─────────────────────────────────────────────────────────────────────────────────────


def test_while_a_release_is_built_only_the_good_model_is_kept(
    slot: ModelSlot, release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    kept: list[weakref.ref[Model]] = []

    def counted(release: ModelRelease, providers: Any, threads: int, python: Any, make_room: Any) -> Model:
        def counting() -> None:
            make_room()
            alive.append(sum(model() is not None for model in kept))

        model = load(release, providers, threads, python, counting)
        kept.append(weakref.ref(model))
        return model

    monkeypatch.setattr(serving, "load", counted)
    for number, stage in enumerate(("full", "canary", "full", "full", "shadow"), 1):
        slot.offer(release(number, stage, 5)).result(60)
        slot.take()
    assert alive == [0, 1, 1, 1, 1]
    assert numbers(slot.serving) == (4, 5, 0)


def test_a_full_trial_that_makes_room_stays_what_everybody_gets(slot: ModelSlot, release: MakeRelease) -> None:
    serve(slot, release(1), release(2))
    slot.offer(release(3)).result(60)
    assert numbers(slot.serving) == (2, None, 0)
    assert numbers(slot.take()[0]) == (2, 3, 100)


def test_a_release_of_another_shops_items_is_refused(slot: ModelSlot, release: MakeRelease, tmp_path: Path) -> None:
    serve(slot, release(1))
    other = make_release(tmp_path / "other", [f"sku-{n}" for n in range(6)], [], "20260101-000009")
    assert slot.offer(other).result(60) is False
    assert "is of another catalogue: it has 0 of the 6 items" in str(slot.refused.get_nowait()[1])
    assert numbers(slot.take()[0]) == (1, None, 0)


def test_whatever_goes_wrong_while_loading_is_a_refusal(
    slot: ModelSlot, release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Model:
        raise MemoryError("no room\nat all")

    monkeypatch.setattr(serving, "load", fail)
    offered = release(1)
    assert slot.offer(offered).result(60) is False
    refused, error = slot.refused.get_nowait()
    assert refused == offered
    assert isinstance(error, ModelRefused)
    assert "MemoryError: no room" in str(error)


def test_of_several_offers_the_newest_full_and_the_newest_trial_after_it_are_loaded(
    slot: ModelSlot, release: MakeRelease, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    loaded: list[str] = []

    def slowly(release: ModelRelease, *others: Any) -> Model:
        loaded.append(release.version[-1])
        begun.set()
        assert go_on.wait(60)
        return load(release, *others)

    monkeypatch.setattr(serving, "load", slowly)
    first = slot.offer(release(0))
    assert begun.wait(60)
    stages: list[tuple[int, Stage]] = [(1, "full"), (2, "canary"), (3, "full"), (4, "shadow"), (5, "canary")]
    offers = [slot.offer(release(number, stage, 7)) for number, stage in stages]
    go_on.set()
    assert [first.result(60), *(offer.result(60) for offer in offers)] == [True, True, *[False] * 4]
    assert loaded == ["0", "3", "5"]
    assert numbers(slot.take()[0]) == (3, 5, 7)
    assert slot.refused.empty()


def test_an_older_full_release_is_loaded_when_the_newer_one_is_refused(slot: ModelSlot, release: MakeRelease) -> None:
    held = threading.Event()
    slot._loader.submit(held.wait)
    offers = [slot.offer(each) for each in (release(1), release(2, model=b"no graph"))]
    held.set()
    assert offers[0].result(60) is True
    assert numbers(slot.take()[0]) == (1, None, 0)
    assert slot.refused.get_nowait()[0].version[-1] == "2"
