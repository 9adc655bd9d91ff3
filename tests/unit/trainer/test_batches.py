"""Batches say what the histories say, each window once, shared out without a rest."""

import numpy as np
import pytest
import torch

from schemas.features import Vocabulary, time_bucket
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer import batches as module
from trainer.batches import Batch, batches, steps_of_one_pass
from trainer.sequences import Histories, Ints, Windows, histories, windows_of_one_pass

CPU = torch.device("cpu")
PER_STEP = 8


@pytest.fixture(scope="module")
def events() -> Histories:
    """No two events at the same time: a window is known by the time of its newest event."""
    rng = np.random.default_rng(3)
    rows, time = [], START_MS
    for user in range(60):
        for _ in range(int(rng.integers(2, 30))):
            time += int(rng.integers(1, 4 * 10 ** rng.integers(1, 9)))
            rows.append((f"u{user:02d}", f"i{rng.integers(200)}", time))
    return histories(clicks_of(rows), Vocabulary([f"i{n}" for n in range(200)]), history=12)


@pytest.fixture(scope="module")
def windows(events: Histories) -> Windows:
    return windows_of_one_pass(events, np.random.default_rng(4))


def made(events: Histories, windows: Windows, steps: list[Ints], share: slice = slice(0, None, 1)) -> list[Batch]:
    return list(batches(events, windows, steps, CPU, share))


def steps_of(events: Histories, windows: Windows) -> list[Ints]:
    return steps_of_one_pass(events, windows, PER_STEP, np.random.default_rng(5))


def held(events: Histories, windows: Windows) -> Ints:
    """Events in each window."""
    count: Ints = events.slots(windows.newest)[1].sum(axis=1, dtype=np.int64)
    return count


def test_the_steps_of_a_pass_hold_every_window_once_and_about_as_many_events_each(
    events: Histories, windows: Windows
) -> None:
    steps = steps_of(events, windows)
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(windows)))
    slots = [len(step) * held(events, windows)[step].max() for step in steps]
    assert max(slots) <= PER_STEP * events.history
    assert np.median(slots) > 0.9 * PER_STEP * events.history
    assert [len(step) for step in steps] != sorted(len(step) for step in steps)  # not from short to long


@pytest.mark.parametrize("chunk", [1, 200, 10**6])
def test_a_batch_holds_what_its_step_says(
    events: Histories, windows: Windows, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_EVENTS", chunk)
    steps = steps_of(events, windows)
    given = made(events, windows, steps)
    assert len(given) == len(steps)
    for step, batch in zip(steps, given, strict=True):
        taken = windows.take(step)
        place, real = events.slots(taken.newest)
        longest = held(events, taken).max()
        expected = {
            **{name: events.inputs(taken.newest)[name] for name in ("item_index", "action", "gap")},
            "event_time": events.event_time[place],
            "counters": events.counters(place),
            "target": events.targets(taken),
        }
        assert set(expected) == set(vars(batch))
        real = real[:, -longest:]
        for name, values in expected.items():
            found = getattr(batch, name).numpy()
            assert found.shape[:2] == (len(step), longest)
            assert np.array_equal(found[real], values[:, -longest:][real]), name
        assert not batch.action.numpy()[~real].any() and not batch.target.numpy()[~real].any()


def test_ages_are_the_buckets_that_the_job_is_served_with(events: Histories, windows: Windows) -> None:
    for batch in made(events, windows, steps_of(events, windows)):
        time, ages = batch.event_time.numpy(), batch.ages().numpy()
        assert np.array_equal(ages, time_bucket(time[:, :, None] - time[:, None, :]))
    (first,) = made(events, windows, [np.arange(PER_STEP)])
    served = events.inputs(windows.newest[:PER_STEP])["age"][:, -first.event_time.shape[1] :]
    assert np.array_equal(first.ages()[:, -1].numpy()[served > 0], served[served > 0])


@pytest.mark.parametrize("power", range(1, 40))
def test_ages_change_their_bucket_exactly_at_powers_of_two(power: int) -> None:
    begin = (2**power - 1) * 1000
    time = torch.tensor([[0, begin - 1, begin, begin + 999]])
    nothing = torch.zeros(1, 4)
    batch = Batch(nothing, nothing, nothing, time, nothing, nothing)
    spans = time.numpy()[:, :, None] - time.numpy()[:, None, :]
    assert np.array_equal(batch.ages().numpy(), time_bucket(spans))


@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_several_processes_are_the_whole_step(events: Histories, windows: Windows, count: int) -> None:
    steps = [step for step in steps_of(events, windows) if len(step) >= count]
    whole = made(events, windows, steps)
    shares = [made(events, windows, steps, slice(rank, None, count)) for rank in range(count)]
    assert [len(share) for share in shares] == [len(steps)] * count
    for step, batch in enumerate(whole):
        for rank, share in enumerate(shares):
            for name, values in vars(share[step]).items():
                # A share may have no window as long as the longest one of the step.
                expected = getattr(batch, name)[rank::count][:, -values.shape[1] :]
                assert torch.equal(values, expected), name


def test_a_step_with_nothing_for_one_of_the_processes_is_left_out(events: Histories, windows: Windows) -> None:
    steps = [np.arange(8), np.arange(8, 16), np.array([16])]
    assert [len(made(events, windows, steps, slice(rank, None, 2))) for rank in range(2)] == [2, 2]
    assert len(made(events, windows, steps)) == 3
