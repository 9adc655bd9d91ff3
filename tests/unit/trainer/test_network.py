import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.features import COUNTER_NAMES, GAP_BUCKETS
from schemas.user_state import HISTORY
from trainer.network import Attention, Network, Scorer
from trainer.recipe import NetworkConfig

ITEMS = 120
Inputs = dict[str, Tensor]


def lively(config: NetworkConfig) -> Network:
    """A network in which every part has a say: those that begin silent are given numbers."""
    torch.manual_seed(7)
    made = Network(config)
    for part in made.modules():
        if isinstance(part, Attention):
            torch.nn.init.normal_(part.distance_bias)
            if part.age_bias is not None:
                torch.nn.init.normal_(part.age_bias)
    torch.nn.init.normal_(made.counters.weight, std=0.1)
    made.blend[: config.recent] = torch.tensor([0.5, 1.0, -0.3])[: config.recent]
    made.set_popularity(torch.arange(config.items + 1))
    made.set_recent(torch.rand(config.items + 1, config.recent))
    return made.eval()


@pytest.fixture
def network() -> Network:
    return lively(NetworkConfig(items=ITEMS, width=16, heads=2))


def history(users: int, filled: int, seed: int = 0) -> Inputs:
    """What the served graph is fed but for what is available."""
    generator = torch.Generator().manual_seed(seed)
    shape = (users, HISTORY)
    inputs = {
        "item_index": torch.randint(1, ITEMS + 1, shape, generator=generator),
        "action": torch.randint(1, 9, shape, generator=generator),
        "gap": torch.randint(0, GAP_BUCKETS, shape, generator=generator),
        "age": torch.randint(1, GAP_BUCKETS, shape, generator=generator),
    }
    for values in inputs.values():
        values[:, : HISTORY - filled] = 0
    inputs["counters"] = torch.rand(users, len(COUNTER_NAMES), generator=generator)
    return inputs


def asked_everywhere(inputs: Inputs) -> Inputs:
    """The same with ages and counters of every place; they differ from place to place."""
    moving = torch.arange(HISTORY)[:, None]
    return {
        **inputs,
        "age": (inputs["age"][:, None] + HISTORY - 1 - moving) % GAP_BUCKETS,
        "counters": inputs["counters"][:, None] * (moving + 1) / HISTORY,
    }


def newest(network: Network, inputs: Inputs) -> Tensor:
    """User vectors [B, D] after the newest event."""
    at_end = {**inputs, "age": inputs["age"][:, None], "counters": inputs["counters"][:, None]}
    user: Tensor = network(network.table(), **at_end)[:, 0]
    return user


def everywhere(network: Network, inputs: Inputs) -> Tensor:
    """User vectors [B, L, D] after every event."""
    user: Tensor = network(network.table(), **asked_everywhere(inputs))
    return user


def test_the_future_does_not_change_the_past(network: Network) -> None:
    inputs = history(4, HISTORY)
    changed = {name: values.clone() for name, values in inputs.items()}
    changed["item_index"][:, 30:] = 3
    before, after = everywhere(network, inputs), everywhere(network, changed)
    assert torch.equal(before[:, :30], after[:, :30])
    assert (before[:, 30:] - after[:, 30:]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["item_index", "action", "gap", "age", "counters"])
def test_each_input_matters(network: Network, name: str) -> None:
    inputs = history(4, 20)
    changed = {**inputs, name: inputs[name].clone()}
    changed[name][:, -2] = changed[name][:, -2] % 8 + 1
    assert (newest(network, changed) - newest(network, inputs)).abs().max() > 1e-4


def test_an_event_on_an_unknown_item_is_still_an_event(network: Network) -> None:
    inputs = history(2, 3)
    inputs["item_index"][:, -2] = 0
    padded = {name: values.clone() for name, values in inputs.items()}
    padded["action"][:, -2] = 0
    assert (newest(network, inputs) - newest(network, padded)).abs().max() > 1e-4


def test_the_last_place_alone_gives_the_same_vector(network: Network) -> None:
    inputs = history(8, 25)
    torch.testing.assert_close(everywhere(network, inputs)[:, -1], newest(network, inputs))


def test_an_empty_history_gives_finite_numbers(network: Network) -> None:
    assert torch.isfinite(everywhere(network, history(2, 0))).all()


def test_blocks_that_share_their_parameters_are_counted_once() -> None:
    one, shared, two = (
        lively(NetworkConfig(ITEMS, width=16, heads=2, blocks=blocks, shared=one))
        for blocks, one in ((1, False), (2, True), (2, False))
    )
    sizes = [sum(p.numel() for p in network.parameters()) for network in (one, shared, two)]
    assert sizes[0] == sizes[1] < sizes[2]
    inputs = history(4, 20)
    torch.testing.assert_close(everywhere(shared, inputs)[:, -1], newest(shared, inputs))
    assert (newest(one, inputs) - newest(shared, inputs)).abs().max() > 1e-3


def test_a_history_of_another_length_is_read() -> None:
    network = lively(NetworkConfig(ITEMS, width=16, heads=2, history=7))
    inputs = {name: values[:, -7:] if name != "counters" else values for name, values in history(3, 5).items()}
    assert newest(network, inputs).shape == (3, 16)


def test_popularity_starts_from_log_counts() -> None:
    network = Network(NetworkConfig(items=3, width=8, heads=2))
    network.set_popularity(torch.tensor([0, 9, 99, 0]))
    start = network.popularity.detach()
    assert (start[2] - start[1]).item() == pytest.approx(np.log(100 / 10), abs=1e-5)
    assert (start[1] - start[3]).item() == pytest.approx(np.log(10 / 1), abs=1e-5)


def test_a_blend_of_nothing_leaves_recent_popularity_out(network: Network) -> None:
    user, table = newest(network, history(4, 20)), network.table()
    network.blend.zero_()
    torch.testing.assert_close(network.scores(user, table), user @ table.T + network.popularity)
    network.blend[1] = 2.0  # and this one takes twice the second window
    expected = user @ table.T + network.popularity + 2.0 * network.recent_VR[:, 1]
    torch.testing.assert_close(network.scores(user, table), expected)


def test_text_is_added_to_the_own_vector_or_stands_alone() -> None:
    network = lively(NetworkConfig(ITEMS, width=16, heads=2, text=8))
    text = torch.nn.functional.normalize(torch.randn(ITEMS + 1, 8), dim=1)
    text[60:] = 0.0  # no text
    text[0] = 0.0
    network.set_text(text)
    assert network.text is not None
    told = network.text(text)
    torch.testing.assert_close(network.table(), network.item.weight + told)
    dropped = network.table(id_dropout=1.0)
    torch.testing.assert_close(dropped[:60], told[:60])
    torch.testing.assert_close(dropped[60:], network.item.weight[60:])  # they have nothing else
    some = network.table(id_dropout=0.5)[1:60]
    alone = (some == told[1:60]).all(dim=1)
    assert 10 < alone.sum() < 50
    torch.testing.assert_close(some[~alone], network.table()[1:60][~alone])


@pytest.mark.parametrize("text", [0, 8])
def test_top_k_is_exact_and_sorted(text: int) -> None:
    network = lively(NetworkConfig(items=ITEMS, width=16, heads=2, text=text))
    network.set_text(torch.rand(ITEMS + 1, text))
    inputs = history(16, 10)
    available = torch.ones(ITEMS + 1, dtype=torch.bool)
    index, score = Scorer(network, 50)(**inputs, available=available)
    everything = network.scores(newest(network, inputs), network.table()).detach().numpy()
    for user in range(16):
        own = set(inputs["item_index"][user].tolist())
        allowed = [item for item in range(1, ITEMS + 1) if item not in own]
        best = sorted(allowed, key=lambda item: -everything[user, item])[:50]
        assert index[user].tolist() == best
        np.testing.assert_allclose(score[user].detach(), everything[user, best], rtol=1e-5, atol=1e-5)


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
