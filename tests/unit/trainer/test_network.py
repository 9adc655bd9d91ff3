import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.features import GAP_BUCKETS
from schemas.user_state import HISTORY
from trainer.network import Attention, Network, NetworkConfig, Scorer

ITEMS = 120


@pytest.fixture
def network() -> Network:
    torch.manual_seed(7)
    made = Network(NetworkConfig(items=ITEMS, width=16, heads=2))
    for part in made.modules():
        if isinstance(part, Attention):
            torch.nn.init.normal_(part.distance_bias)
    made.set_popularity(torch.arange(ITEMS + 1))
    return made.eval()


def history(users: int, filled: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (users, HISTORY)
    inputs = {
        "item_index": torch.randint(1, ITEMS + 1, shape, generator=generator),
        "action": torch.randint(1, 9, shape, generator=generator),
        "gap": torch.randint(0, GAP_BUCKETS, shape, generator=generator),
    }
    for values in inputs.values():
        values[:, : HISTORY - filled] = 0
    return inputs


def test_the_future_does_not_change_the_past(network: Network) -> None:
    inputs = history(4, HISTORY)
    changed = {name: values.clone() for name, values in inputs.items()}
    changed["item_index"][:, 30:] = 3
    before, after = network(**inputs), network(**changed)
    assert torch.equal(before[:, :30], after[:, :30])
    assert (before[:, 30:] - after[:, 30:]).abs().max() > 0.01


def test_each_of_item_action_and_gap_matters(network: Network) -> None:
    inputs = history(4, 20)
    before = network(**inputs, last_only=True)
    for name in inputs:
        changed = {**inputs, name: inputs[name].clone()}
        changed[name][:, -2] = changed[name][:, -2] % 8 + 1
        assert (network(**changed, last_only=True) - before).abs().max() > 1e-4, name


def test_an_event_on_an_unknown_item_is_still_an_event(network: Network) -> None:
    inputs = history(2, 3)
    inputs["item_index"][:, -2] = 0
    padded = {name: values.clone() for name, values in inputs.items()}
    padded["action"][:, -2] = 0
    known = network(**inputs, last_only=True)
    assert (known - network(**padded, last_only=True)).abs().max() > 1e-4


def test_the_last_place_alone_gives_the_same_vector(network: Network) -> None:
    inputs = history(8, 25)
    torch.testing.assert_close(network(**inputs)[:, -1], network(**inputs, last_only=True))


def test_an_empty_history_gives_finite_numbers(network: Network) -> None:
    assert torch.isfinite(network(**history(2, 0))).all()


def test_popularity_starts_from_log_counts() -> None:
    network = Network(NetworkConfig(items=3, width=8, heads=2))
    network.set_popularity(torch.tensor([0, 9, 99, 0]))
    start = network.popularity.detach()
    assert (start[2] - start[1]).item() == pytest.approx(np.log(100 / 10), abs=1e-5)
    assert (start[1] - start[3]).item() == pytest.approx(np.log(10 / 1), abs=1e-5)


def test_top_k_is_exact_and_sorted(network: Network) -> None:
    inputs = history(16, 10)
    available = torch.ones(ITEMS + 1, dtype=torch.bool)
    index, score = Scorer(network, 50)(**inputs, available=available)
    everything = network.scores(network(**inputs, last_only=True)).detach().numpy()
    for user in range(16):
        own = set(inputs["item_index"][user].tolist())
        allowed = [item for item in range(1, ITEMS + 1) if item not in own]
        best = sorted(allowed, key=lambda item: -everything[user, item])[:50]
        assert index[user].tolist() == best
        np.testing.assert_allclose(score[user].detach(), everything[user, best], rtol=1e-6)


@pytest.mark.parametrize("filled", [0, 10, HISTORY])
def test_own_items_padding_and_unavailable_items_are_never_listed(network: Network, filled: int) -> None:
    inputs = history(32, filled)
    available = torch.ones(ITEMS + 1, dtype=torch.bool)
    available[50:100] = False
    index, score = Scorer(network, 50)(**inputs, available=available)
    listed = torch.isfinite(score)
    assert listed[:, 0].all()
    assert (index[listed] > 0).all()
    assert available[index[listed]].all()
    own = (index[:, :, None] == inputs["item_index"][:, None, :]).any(2)
    assert not (own & listed).any()


def test_a_list_that_runs_out_of_items_ends_in_minus_infinity(network: Network) -> None:
    available = torch.zeros(ITEMS + 1, dtype=torch.bool)
    available[[5, 6, 7]] = True
    inputs = history(1, 1)
    inputs["item_index"][0, -1] = 6
    index, score = Scorer(network, 10)(**inputs, available=available)
    assert set(index[0, :2].tolist()) == {5, 7}
    assert torch.isneginf(score[0, 2:]).all()
