"""The loop around the loss: the best average stays, it ends in time, the rate follows its curve."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.unit.trainer.learning import ALONE, ITEMS, chain, small_network
from trainer import fit as module
from trainer.fit import LAST_SHARE, WARM_UP_STEPS, Check, Checked, Fit, Rate, checked
from trainer.network import Network
from trainer.recipe import Recipe
from trainer.sequences import Histories, next_items, windows_of_one_pass

pytestmark = pytest.mark.filterwarnings("ignore")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def shop() -> Histories:
    return chain(users=40)


def fit_of(network: Network, recipe: Recipe) -> Fit:
    live = torch.ones(ITEMS + 1, dtype=torch.bool)
    return Fit(network, live, recipe, np.random.default_rng(1), ALONE, None)


def fitted(
    shop: Histories, ndcg: Sequence[float], recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, Network, list[State]]:
    """A fit whose checks find these qualities: passes that counted, the network, and what it was at each check."""
    states: list[State] = []

    def scripted(network: Network, check: Check) -> Checked:
        states.append({name: values.clone() for name, values in network.state_dict().items()})
        return Checked(1.0, ndcg[len(states) - 1], 0.0)

    monkeypatch.setattr(module, "checked", scripted)
    network = small_network()
    fit = fit_of(network, recipe)
    rng = np.random.default_rng(2)
    counted, best = fit.passes("tune", shop, lambda: windows_of_one_pass(shop, rng), Check(shop, np.zeros(0, np.int64)))
    assert best is not None and best.ndcg == max(ndcg[: len(states)])
    return counted, network, states


def same(state: State, other: State) -> bool:
    return all(torch.equal(state[name], other[name]) for name in state)


def test_the_best_average_is_what_stays(shop: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(passes=9, rate=3e-3, per_step=8, steps=100, patience=2, average=0.9)
    counted, network, states = fitted(shop, [0.1, 0.2, 0.4, 0.3, 0.3, 0.9], recipe, monkeypatch)
    assert (counted, len(states)) == (2, 5)  # the start and four passes: two without a better result end it
    assert same(network.state_dict(), states[2])
    assert not same(states[1], states[2]) and not same(states[2], states[3])


def test_a_start_that_no_pass_makes_better_stays(shop: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(passes=9, rate=3e-3, per_step=8, steps=100, patience=1, average=0.9)
    counted, network, states = fitted(shop, [0.5, 0.5], recipe, monkeypatch)
    assert (counted, len(states)) == (0, 2)
    assert same(network.state_dict(), states[0]) and same(states[0], small_network().state_dict())


def test_it_ends_after_its_passes_however_well_it_goes(shop: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(passes=2, rate=3e-3, per_step=8, steps=100, patience=1)
    counted, network, states = fitted(shop, [0.1, 0.2, 0.3, 0.4], recipe, monkeypatch)
    assert (counted, len(states)) == (2, 3)
    assert same(network.state_dict(), states[2])


def test_the_average_lies_between_where_it_began_and_where_it_is(shop: Histories) -> None:
    network = small_network()
    fit = fit_of(network, Recipe(passes=1, rate=3e-3, per_step=8, steps=100, average=0.99))
    start = small_network().popularity.detach()
    rng = np.random.default_rng(1)
    windows = windows_of_one_pass(shop, rng)
    fit._one_pass(shop, windows, [*np.array_split(np.arange(len(windows)), 6)], Rate(3e-3, 0, 20), lambda *_: None)
    now, average = network.popularity.detach(), fit._averaged.popularity.detach()
    moved = (now - start).abs() > 1e-3
    share = ((average - start) / (now - start))[moved]
    assert 0.2 < share.median() < 1.0


def test_the_rate_rises_falls_and_ends_low() -> None:
    rate = Rate(highest=2.0, begin=100, steps=1000)
    assert rate(100) == pytest.approx(2.0 / WARM_UP_STEPS)
    assert rate(100 + WARM_UP_STEPS // 2 - 1) == pytest.approx(1.0, rel=0.01)
    assert rate(600) == pytest.approx(2.0 * (LAST_SHARE + 1) / 2)
    assert rate(1100) == rate(5000) == pytest.approx(2.0 * LAST_SHARE)
    constant = Rate(2.0, 100, 1000, constant=True)
    assert [constant(step) for step in (100, 150, 1100)] == [2.0 / WARM_UP_STEPS, 2.0, 2.0]


def test_a_check_is_the_rank_among_items_that_the_history_does_not_show(shop: Histories) -> None:
    network = small_network().eval()
    places = next_items(shop, int(np.quantile(shop.event_time, 0.8)))
    found = checked(network, Check(shop, places))
    ndcg = hit = loss = 0.0
    for place in places:
        inputs = {name: torch.from_numpy(values) for name, values in shop.inputs(np.array([place - 1])).items()}
        inputs["age"], inputs["counters"] = inputs["age"][:, None], inputs["counters"][:, None]
        scores = network.scores(network(network.table(), **inputs)[0, 0], network.table()).detach().numpy()
        target = shop.item_index[place]
        shown = shop.item_index[shop.first[place] : place]
        candidates = np.setdiff1d(np.arange(1, ITEMS + 1), shown)
        loss += float(np.log(np.exp(scores[candidates]).sum()) - scores[target])
        rank = int((scores[candidates] > scores[target]).sum())
        hit += rank < 10
        ndcg += (rank < 10) / np.log2(rank + 2)
    assert (found.hit, found.ndcg, found.loss) == pytest.approx(
        (hit / len(places), ndcg / len(places), loss / len(places)), rel=1e-5
    )
