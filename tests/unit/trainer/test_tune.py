from pathlib import Path

import numpy as np
import pytest
import torch

from schemas.features import Vocabulary
from tests.unit.trainer.shop import chain_clicks, clicks_of
from trainer.config import Plan
from trainer.cooccurrence import item_vectors
from trainer.judge import foreseen_by_popularity
from trainer.network import Network, NetworkConfig, tensors
from trainer.sequences import Histories, histories, next_items, slices
from trainer.tune import first_network, grown_network, save_checkpoint, tune

# tensorboard and torch bring warnings about themselves.
pytestmark = pytest.mark.filterwarnings("ignore")
ITEMS = 200


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        data=tmp_path,
        releases=tmp_path / "releases",
        checkpoints=tmp_path / "checkpoints",
        curves=tmp_path / "curves",
        seed=1,
        threads=1,
        first_passes=3,
        later_passes=1,
    )


@pytest.fixture(scope="module")
def chain() -> Histories:
    clicks = chain_clicks(ITEMS, users=200, events=30, seed=3)
    return histories(clicks, Vocabulary([f"i{n:03d}" for n in range(ITEMS)]))


def hit_rate(network: Network, events: Histories, since_ms: int) -> float:
    place = next_items(events, since_ms)
    with torch.no_grad():
        user = network.eval()(**tensors(events.inputs(place - 1)), last_only=True)
        score = network.scores(user).numpy()
    np.put_along_axis(score, events.seen(place - 1), -np.inf, axis=1)
    target = np.take_along_axis(score, events.item_index[place][:, None], axis=1)
    return float(((score > target).sum(axis=1) < 10).mean())


def test_what_follows_what_is_learned_far_better_than_popularity(chain: Histories, plan: Plan, tmp_path: Path) -> None:
    cut = slices(chain.event_time, None)
    assert cut is not None
    network = first_network(chain.before(cut.stop_from), ITEMS, seed=1)
    fit = tune(network, chain, cut, None, plan, tmp_path / "curves")
    place = next_items(chain, cut.judge_from)
    popularity, _ = foreseen_by_popularity(chain, place, cut.judge_from, ITEMS)
    assert hit_rate(network, chain, cut.judge_from) > 0.7
    assert popularity.hit.mean() < 0.15
    assert 1 <= fit["tune_passes"] <= 3
    assert list((tmp_path / "curves").glob("events.out.*"))


def test_the_same_seed_gives_the_same_network(chain: Histories, plan: Plan, tmp_path: Path) -> None:
    cut = slices(chain.event_time, None)
    assert cut is not None
    states = []
    for run in range(2):
        network = first_network(chain, ITEMS, seed=4)
        tune(network, chain, cut, cut.stop_from, plan, tmp_path / str(run))
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_held_back_slice_is_never_learned(chain: Histories, plan: Plan, tmp_path: Path) -> None:
    cut = slices(chain.event_time, None)
    assert cut is not None
    held = chain.event_time >= cut.judge_from
    scrambled = Histories(
        chain.first,
        chain.last,
        np.where(held, 1, chain.item_index),
        chain.action,
        chain.event_time,
        chain.user_count,
    )
    states = []
    for name, events in (("real", chain), ("scrambled", scrambled)):
        network = first_network(chain.before(cut.judge_from), ITEMS, seed=4)
        tune(network, events, cut, cut.stop_from, plan, tmp_path / name)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_warm_start_keeps_every_index_and_appends(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = Network(NetworkConfig(items=20, width=16, heads=2)).eval()
    before.set_popularity(torch.arange(21))
    save_checkpoint(before, tmp_path / "c" / "v.pt")
    after = grown_network(tmp_path / "c" / "v.pt", 23, seed=9).eval()
    assert after.config == NetworkConfig(items=23, width=16, heads=2)
    assert torch.equal(after.item.weight[:21], before.item.weight)
    assert torch.equal(after.popularity[:21], before.popularity)
    assert torch.equal(after.popularity[21:], before.popularity.min().expand(3))
    assert 0 < after.item.weight[21:].norm(dim=1).max() < 0.2
    inputs = {
        "item_index": torch.randint(1, 21, (4, 50)),
        "action": torch.ones(4, 50, dtype=torch.int64),
        "gap": torch.ones(4, 50, dtype=torch.int64),
    }
    torch.testing.assert_close(after(**inputs), before(**inputs))


def test_items_that_go_together_begin_close_to_each_other() -> None:
    rows = []
    for user in range(40):  # two kinds of customers, who never buy of the other kind
        kind = "ab"[user % 2]
        rows += [(f"u{user}", f"{kind}{(user + n) % 8}", 1_000 * n + 1) for n in range(6)]
    vocabulary = Vocabulary([f"{kind}{n}" for kind in "ab" for n in range(8)])
    vectors = item_vectors(histories(clicks_of(rows), vocabulary), 16, 8, seed=0)
    unit = torch.nn.functional.normalize(vectors[1:], dim=1)
    likeness = unit @ unit.T
    same = likeness[:8, :8][~torch.eye(8, dtype=torch.bool)].mean()
    assert same > 0.5
    assert likeness[:8, 8:].abs().mean() < 0.2
    assert not vectors[0].any()
