"""What matters little is taken out, and what is left learns to say the same."""

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.features import Inputs
from tests.unit.trainer.test_shrink_lean import CONFIGS, ITEMS, lively
from trainer.network import Block, Network
from trainer.prune import importance_of, parameters, pruned, shared
from trainer.recipe import NetworkConfig
from trainer.recover import recover
from trainer.sequences import Histories

pytestmark = pytest.mark.filterwarnings("ignore")
LIVE = torch.ones(ITEMS + 1, dtype=torch.bool)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


WIDE = NetworkConfig(ITEMS, width=32, heads=4, feed=24, dropout=0.0)


def users_of(network: Network, shop: Histories) -> Tensor:
    inputs: Inputs = shop.inputs(np.arange(0, len(shop), 11))
    given = {name: torch.from_numpy(values) for name, values in inputs.items()}
    given["age"], given["counters"] = given["age"][:, None], given["counters"][:, None]
    with torch.no_grad():
        users: Tensor = network.eval()(network.table(), **given)[:, 0]
    return users


def with_useless_parts(shop: Histories) -> tuple[Network, list[list[int]], list[list[int]]]:
    """A network whose heads and units at these places, by block, carry nothing on."""
    network, heads, units = lively(WIDE, shop), [[0, 2], [1, 3]], [list(range(0, 24, 2)), list(range(12))]
    for block, idle_heads, idle_units in zip(network.blocks, heads, units, strict=True):
        assert isinstance(block, Block)
        with torch.no_grad():
            for head in idle_heads:
                block.attention.output.weight[:, head * 8 : head * 8 + 8] = 0
            block.feed_out.weight[:, idle_units] = 0
    return network, heads, units


def test_parts_that_carry_nothing_are_what_is_taken_out_and_nobody_notices(shop: Histories) -> None:
    network, heads, units = with_useless_parts(shop)
    importance = importance_of(network, shop, None, LIVE, seed=1)
    for of_block, idle_heads, idle_units in zip(importance, heads, units, strict=True):
        assert (of_block.heads == 0).nonzero().flatten().tolist() == idle_heads
        assert (of_block.units == 0).nonzero().flatten().tolist() == idle_units
    small = pruned(network, importance, heads=2, feed=12)
    assert (small.config.heads, small.config.one_head, small.config.feed_width) == (2, 8, 12)
    torch.testing.assert_close(users_of(small, shop), users_of(network, shop))
    assert torch.equal(small.strength_VM, network.strength_VM)


def test_taking_out_what_matters_is_noticed(shop: Histories) -> None:
    network, *_ = with_useless_parts(shop)
    importance = importance_of(network, shop, None, LIVE, seed=1)
    smaller = pruned(network, importance, heads=1, feed=12)
    assert (users_of(smaller, shop) - users_of(network, shop)).abs().max() > 0.01


def test_importance_is_what_leaving_a_part_out_changes_to_first_order(shop: Histories) -> None:
    """Against the loss itself, with a head turned down by a little."""
    from trainer.batches import batches
    from trainer.objective import Objective
    from trainer.sequences import windows_of_one_pass

    network = lively(WIDE, shop)
    windows = windows_of_one_pass(shop, np.random.default_rng(1))
    assert len(windows) <= 2048  # all of them are asked
    steps = [np.arange(len(windows))]
    [batch] = batches(shop, windows, steps, torch.device("cpu"), slice(None))
    objective = Objective(network, LIVE, 0.0)
    count = (batch.target > 0).sum()

    def loss_with(block: int, head: int, by: float) -> float:
        weight = network.blocks[block].attention.output.weight  # type: ignore[union-attr]
        assert isinstance(weight, Tensor)
        columns = slice(head * 8, head * 8 + 8)
        before = weight[:, columns].clone()
        with torch.no_grad():
            weight[:, columns] *= by
            found = float(objective(batch).double() / count)
            weight[:, columns] = before
        return found

    from trainer import prune

    prune_at_once, prune.ASKED_AT_ONCE = prune.ASKED_AT_ONCE, len(windows)
    try:
        importance = importance_of(network, shop, None, LIVE, seed=1)
    finally:
        prune.ASKED_AT_ONCE = prune_at_once
    step = 0.05
    for block in (0, 1):
        slope = [abs(loss_with(block, h, 1 + step) - loss_with(block, h, 1 - step)) / (2 * step) for h in range(4)]
        np.testing.assert_allclose(importance[block].heads.numpy(), slope, rtol=0.1, atol=2e-5)


def test_only_events_since_a_moment_are_asked(shop: Histories) -> None:
    network = lively(WIDE, shop)
    late = int(np.quantile(shop.event_time, 0.9))
    everything, newest = (importance_of(network, shop, since, LIVE, seed=1) for since in (None, late))
    assert not torch.allclose(everything[0].heads, newest[0].heads, rtol=0.01)


def test_shared_blocks_are_one_and_begin_as_the_mean(shop: Histories) -> None:
    network = lively(CONFIGS[0], shop)
    one = shared(network)
    assert one.config.shared
    assert one.blocks[0] is one.blocks[1]
    first, last = (dict(block.named_parameters()) for block in network.blocks)
    for name, value in one.blocks[0].named_parameters():
        expected = (first[name] + last[name]) / 2 if name in first else last[name]
        torch.testing.assert_close(value, expected)
    saved = sum(value.numel() for value in first.values())
    assert parameters(network) - parameters(one) == saved
    assert shared(one) is one


def test_equal_blocks_are_shared_without_anybody_noticing(shop: Histories) -> None:
    network = lively(CONFIGS[0], shop)
    first, last = network.blocks
    last.load_state_dict({**last.state_dict(), **first.state_dict()})
    torch.testing.assert_close(users_of(shared(network), shop), users_of(network, shop))


def test_what_is_left_learns_to_say_what_the_whole_one_said(shop: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.recover.STEPS", 150)
    network = lively(WIDE, shop)
    items = network.item.weight.clone()
    small = pruned(network, importance_of(network, shop, None, LIVE, seed=1), heads=1, feed=4)
    far = (users_of(small, shop) - users_of(network, shop)).square().mean()
    found = recover(small, network, shop, seed=1)
    near = (users_of(small, shop) - users_of(network, shop)).square().mean()
    assert near < far / 4
    assert 0 < found.missed < 0.3
    assert found.steps == 150
    assert torch.equal(small.item.weight, items)
