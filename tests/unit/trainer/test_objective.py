"""The loss against sums worked out in numpy, and its sampled form against the full one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.trainer.learning import chain
from tests.unit.trainer.test_network import lively
from trainer import objective as module
from trainer.batches import Batch, batches
from trainer.network import Network
from trainer.objective import Objective
from trainer.recipe import NetworkConfig
from trainer.sequences import Ints, newest_windows

ITEMS = 300


@pytest.fixture
def batch() -> Batch:
    events = chain(users=12, events=20, items=ITEMS)
    windows = newest_windows(events)
    return next(batches(events, windows, [np.arange(12)], torch.device("cpu"), slice(0, None, 1)))


@pytest.fixture
def network() -> Network:
    network = lively(NetworkConfig(ITEMS, width=16, heads=2))
    with torch.no_grad():
        network.popularity[0] = -1e4  # index 0 is no item
        network.popularity.clamp_(max=2.0)
    return network


def everything() -> Tensor:
    return torch.ones(ITEMS + 1, dtype=torch.bool)


def by_hand(network: Network, batch: Batch, stands: Ints) -> float:
    """Sum over all targets of the log of the sum of e^score, less the target's own score."""
    table = network.table()
    with torch.no_grad():
        user = network(table, batch.item_index, batch.action, batch.gap, batch.ages(), batch.counters)
        scores = network.scores(user, table).double().numpy()
    total = 0.0
    for window, place in np.argwhere(batch.target.numpy() > 0):
        target = int(batch.target[window, place])
        among = scores[window, place][stands]
        total += np.log(np.exp(among).sum()) - scores[window, place, target]
    return total


def test_the_loss_is_the_cross_entropy_over_all_items(network: Network, batch: Batch) -> None:
    loss = Objective(network, everything(), 0.0)(batch)
    assert loss.item() == pytest.approx(by_hand(network, batch, np.arange(1, ITEMS + 1)), rel=1e-5)


def test_dead_items_are_learned_from_and_are_no_wrong_answer(network: Network, batch: Batch) -> None:
    came = np.unique(batch.target[batch.target > 0])
    never = np.setdiff1d(np.arange(1, ITEMS + 1), came)
    dead = [*came[:20].tolist(), *never[:50].tolist()]  # the first kind is still what came next
    live = everything()
    live[dead] = False
    loss = Objective(network, live, 0.0)(batch)
    stands = np.setdiff1d(np.arange(1, ITEMS + 1), never[:50])
    assert loss.item() == pytest.approx(by_hand(network, batch, stands), rel=1e-5)
    assert loss.item() < Objective(network, everything(), 0.0)(batch).item() - 1.0


@pytest.mark.parametrize("all_live", [True, False])
def test_a_sample_says_on_average_what_all_items_say(
    network: Network, batch: Batch, all_live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = everything()
    if not all_live:
        live[200:] = False
    objective = Objective(network, live, 0.0)

    def loss_and_pull() -> tuple[float, Tensor]:
        network.zero_grad()
        loss = objective(batch)
        loss.backward()
        assert network.popularity.grad is not None
        return loss.item(), network.popularity.grad[1:].clone()

    full, pull = loss_and_pull()
    monkeypatch.setattr(module, "FULL_UP_TO", 0)
    monkeypatch.setattr(module, "SAMPLED", 60)
    torch.manual_seed(1)
    drawn = [loss_and_pull() for _ in range(40)]
    assert np.mean([loss for loss, _ in drawn]) == pytest.approx(full, rel=0.04)
    sampled = torch.stack([each for _, each in drawn]).mean(0)
    assert torch.nn.functional.cosine_similarity(sampled, pull, dim=0) > 0.95
    assert float(sampled.norm()) == pytest.approx(float(pull.norm()), rel=0.1)
    assert bool((sampled[~live[1:]] == 0).any()) is not all_live  # the dead are never drawn


@pytest.mark.parametrize("full_up_to", [0, 20_000])
@pytest.mark.parametrize("text", [0, 8])
@pytest.mark.parametrize("shared", [False, True])
def test_every_parameter_takes_part_in_every_step(
    batch: Batch, text: int, shared: bool, full_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that learn together wait for the gradient of each."""
    monkeypatch.setattr(module, "FULL_UP_TO", full_up_to)
    network = Network(NetworkConfig(ITEMS, width=16, heads=2, text=text, shared=shared))
    objective = Objective(network, everything(), 0.1)
    for targets in (batch.target, torch.zeros_like(batch.target)):  # also where nothing is to be learned
        network.zero_grad()
        objective(replace(batch, target=targets)).backward()
        assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
