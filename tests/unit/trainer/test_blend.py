"""How much memory and recent popularity count is what they prove to be worth on events that none of them saw."""

import numpy as np
import pytest
import torch

from tests.unit.trainer.learning import ITEMS, chain, small_network
from trainer.blend import LEAST_EVENTS, fit_blend
from trainer.fit import Check, checked
from trainer.network import MEMORIES, Network
from trainer.sequences import Histories, next_items
from trainer.start import know


@pytest.fixture(scope="module")
def shop() -> Histories:
    return chain()


def asked(shop: Histories, network: Network, share: float = 0.8) -> Check:
    """The network knows what came before the events of the check."""
    since = int(np.quantile(shop.event_time, share))
    know(network, shop.before(since))
    return Check(shop, next_items(shop, since))


def test_memory_counts_where_it_knows_what_follows_what(shop: Histories) -> None:
    network = small_network()
    check = asked(shop, network)
    before = checked(network, check)
    fit_blend(network, check)
    after = checked(network, check)
    assert network.blend[-MEMORIES] > 1.0
    assert before.hit < 0.2
    assert after.hit > 0.6
    assert after.loss < before.loss - 1


def test_memory_that_knows_nothing_is_left_out(shop: Histories) -> None:
    network = small_network()
    check = asked(shop, network)
    generator = torch.Generator().manual_seed(1)
    network.neighbour_VM = torch.randint(1, ITEMS + 1, network.neighbour_VM.shape, generator=generator)
    before = checked(network, check)
    fit_blend(network, check)
    assert network.blend[-MEMORIES:].max() < 0.1
    assert checked(network, check).ndcg >= before.ndcg - 0.01


def test_what_is_shouted_without_reason_is_softened(shop: Histories) -> None:
    network = small_network()
    check = asked(shop, network)
    with torch.no_grad():
        network.popularity.copy_(3.0 * torch.randn(ITEMS + 1, generator=torch.Generator().manual_seed(2)))
    fit_blend(network, check)
    assert 0 < network.sharpness < 0.5


def test_it_is_asked_again_from_nothing_but_the_networks_own_scores(shop: Histories) -> None:
    """What was found before is where the fit begins, not part of what it is about."""
    losses = []
    for start in (0.0, 2.0):
        network = small_network()
        check = asked(shop, network)
        network.set_recent(torch.randn(ITEMS + 1, 3, generator=torch.Generator().manual_seed(3)))
        network.blend[:-MEMORIES] = start
        fit_blend(network, check)
        losses.append(checked(network, check).loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_a_handful_of_events_changes_nothing(shop: Histories) -> None:
    network = small_network()
    check = asked(shop, network)
    fit_blend(network, Check(shop, check.places[: LEAST_EVENTS - 1]))
    assert not network.blend.any()
    assert network.sharpness == 1.0
