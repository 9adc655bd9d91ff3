from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.features import Vocabulary
from tests.unit.trainer.learning import ITEMS, chain, cut_of, hit_rate, item_ids, learn, small_network
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer.config import DAY_MS
from trainer.fit import Check
from trainer.judge import foreseen_by_popularity
from trainer.memory import memory_of
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories, histories, next_items, windows_of_one_pass
from trainer.start import first_network, recent_popularity
from trainer.tune import OLDER_SPANS, Course, course_of_cycle, of_met_items, windows_with_older

# tensorboard and torch bring warnings about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def shop() -> Histories:
    return chain()


def test_what_follows_what_is_learned_far_better_than_popularity(shop: Histories, tmp_path: Path) -> None:
    cut = cut_of(shop)
    network = first_network(NetworkConfig(ITEMS), shop.before(cut.stop_from), seed=1)
    fit = learn(network, course_of_cycle(shop, cut, None), passes=3, curves=tmp_path / "curves")
    place = next_items(shop, cut.judge_from)
    popularity, _ = foreseen_by_popularity(shop, place, cut.judge_from, ITEMS)
    assert hit_rate(network, shop, cut.judge_from) > 0.7
    assert popularity.hit.mean() < 0.15
    assert 1 <= fit["tune_passes"] <= 3
    assert {"stop_loss", "stop_ndcg", "tune_seconds", "tune_steps"} < set(fit)
    assert list((tmp_path / "curves").glob("events.out.*"))


def test_the_same_seed_gives_the_same_network(shop: Histories) -> None:
    cut = cut_of(shop)
    states = []
    for _ in range(2):
        network = first_network(NetworkConfig(ITEMS, width=16, heads=2), shop, seed=4)
        learn(network, course_of_cycle(shop, cut, cut.stop_from), passes=1)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_network_that_goes_on_learns_the_newest_events_too(shop: Histories) -> None:
    """Nothing of what is new is held back to stop by: the gate's slice begins right behind."""
    cut = cut_of(shop)
    course = course_of_cycle(shop, cut, cut.stop_from)
    assert course.check is None and course.settle_from is None
    assert course.known.event_time.max() == shop.event_time[shop.event_time < cut.judge_from].max()
    network = first_network(NetworkConfig(ITEMS, width=16, heads=2), shop.before(cut.stop_from), seed=4)
    fit = learn(network, course, passes=2)
    assert fit["tune_passes"] == 2
    assert "stop_loss" not in fit
    assert torch.equal(network.recent_VR, recent_popularity(course.known, ITEMS))
    assert torch.equal(network.strength_VM, memory_of(course.known, ITEMS).strength)
    assert network.blend[-2] > 0  # what the new events were foreseen by: in this shop one follows the other


def test_the_held_back_slice_is_never_learned(shop: Histories) -> None:
    cut = cut_of(shop)
    held = shop.event_time >= cut.judge_from
    scrambled = replace(shop, item_index=np.where(held, 1, shop.item_index))
    states = []
    for events in (shop, scrambled):
        network = first_network(NetworkConfig(ITEMS, width=16, heads=2), shop.before(cut.judge_from), seed=4)
        learn(network, course_of_cycle(events, cut, cut.stop_from), passes=1)
        states.append({**network.state_dict(), "recent": network.recent_VR})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_an_item_that_cannot_be_had_is_nobodys_wrong_answer(shop: Histories) -> None:
    """Two items that nobody ever clicked: what speaks against the live one says nothing of the dead one."""
    network = small_network(ITEMS + 2)
    live = torch.ones(ITEMS + 3, dtype=torch.bool)
    live[ITEMS + 2] = False
    learn(network, Course(shop, None, None, None), passes=2, live=live)
    assert network.popularity[ITEMS + 1] < -0.003
    assert network.popularity[ITEMS + 2] == 0.0


def fashion(users: Sequence[int]) -> Histories:
    """Every second day ten other items come into fashion, and seven of ten clicks go to them; users: of each day."""
    rng = np.random.default_rng(0)
    rows = []
    for day, count in enumerate(users):
        hot = np.random.default_rng(1000 + day // 2).permutation(60)[:10]
        for user in range(count):
            begin = START_MS + day * DAY_MS + int(rng.integers(0, DAY_MS - 10_000))
            chosen = np.where(rng.random(4) < 0.7, rng.choice(hot, 4), rng.integers(0, 60, 4))
            rows += [(f"u{day}-{user}", f"i{item:03d}", begin + 1_000 * n) for n, item in enumerate(chosen)]
    return histories(clicks_of(rows), Vocabulary(item_ids(60)))


def test_settling_learns_that_what_was_wanted_yesterday_is_wanted_today() -> None:
    # It settles on the second day of a fashion; of the next fashion it is told nothing but how popular items are.
    events = fashion([40] * 29 + [500] * 3)
    settle, after, asked = (START_MS + day * DAY_MS for day in (29, 30, 31))
    settled = events.before(after)
    course = Course(events.before(settle), Check(settled, next_items(settled, settle)), None, settle)
    network = first_network(NetworkConfig(60, width=16, heads=2), course.known, seed=1)
    learn(network, course, passes=1)
    assert torch.equal(network.recent_VR, recent_popularity(settled, 60))
    network.set_recent(recent_popularity(events.before(asked), 60))
    told = hit_rate(network, events, asked)
    network.set_recent(torch.zeros_like(network.recent_VR))
    # Ten items make seven of ten clicks, some of which the user already had.
    assert told > 0.4
    assert told > 2.5 * hit_rate(network, events, asked)


def test_older_windows_are_as_many_as_new_ones_and_evenly_spread_over_time() -> None:
    # Users of two events a window each, at a tenth of the pace in the older half of the time.
    times = [*range(0, 800, 10), *range(800, 1600), *range(1600, 1800)]
    rows = [row for t in times for row in ((f"u{t}", "i1", t), (f"u{t}", "i2", t + 1))]
    events = histories(clicks_of(rows), Vocabulary(["i1", "i2"]))
    windows = windows_with_older(events, 1601, 0.5, np.random.default_rng(0))
    target_time = events.event_time[windows.newest + 1]
    new = target_time >= 1601
    assert (new.sum(), (~new).sum()) == (200, 100)
    assert len(np.unique(windows.newest)) == 300
    span = np.bincount(target_time[~new] * OLDER_SPANS // 1601, minlength=OLDER_SPANS)
    assert span.min() >= 12 and span.max() <= 13  # 100 from 8 spans, the first of them with 20 windows each
    many = windows_with_older(events, 1601, 2.0, np.random.default_rng(0))
    older = events.event_time[many.newest + 1] < 1601
    span = np.bincount(events.event_time[many.newest + 1][older] * OLDER_SPANS // 1601, minlength=OLDER_SPANS)
    assert older.sum() == 400
    assert span[:4].tolist() == [20] * 4 and span[4:].tolist() == [80] * 4  # what a span lacks, others give


def test_a_first_fit_learns_every_window_and_fine_tuning_without_replay_new_ones_alone(shop: Histories) -> None:
    rng = np.random.default_rng
    everything = windows_with_older(shop, None, 1.0, rng(5))
    assert everything.newest.tolist() == windows_of_one_pass(shop, rng(5)).newest.tolist()
    moment = int(np.quantile(shop.event_time, 0.9))
    alone = windows_with_older(shop, moment, 0.0, rng(5))
    new = shop.event_time[everything.newest + 1] >= moment
    assert alone.newest.tolist() == everything.newest[new].tolist()
    few = windows_with_older(shop, int(np.quantile(shop.event_time, 0.01)), 1.0, rng(5))
    assert sorted(few.newest.tolist()) == sorted(everything.newest.tolist())  # fewer older ones than wanted: all


def test_what_is_blended_in_is_asked_about_items_that_were_met(shop: Histories) -> None:
    """An item that only came later says nothing about what is known."""
    since = int(np.quantile(shop.event_time, 0.8))
    later = next_items(shop, since)
    unmet = int(shop.item_index[later[0]])
    learned = shop.before(since)
    without = replace(learned, item_index=np.where(learned.item_index == unmet, 0, learned.item_index))
    check = Check(shop, later)
    assert np.array_equal(of_met_items(check, learned, ITEMS).places, later)
    asked = of_met_items(check, without, ITEMS).places
    assert 0 < len(later) - len(asked) == np.count_nonzero(shop.item_index[later] == unmet)
    assert unmet not in shop.item_index[asked]
