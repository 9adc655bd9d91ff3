"""What is counted of items that came near each other, and how it is mixed with what the network expects."""

import numpy as np
import pytest
import torch

from schemas.features import Vocabulary
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer.memory import BACKWARDS, DISCOUNT, HALF_LIFE_MS, MOST_NEIGHBOURS, Memory, memory_of
from trainer.network import Network, Scorer
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories, histories

NAMES = ["a", "b", "c"]
A, B, C = 1, 2, 3


def walks(*rows: tuple[str, str, int]) -> Histories:
    """Events (user, item, ms before now)."""
    return histories(clicks_of([(user, item, START_MS - ago) for user, item, ago in rows]), Vocabulary(NAMES))


def remembered(memory: Memory, item: int) -> dict[int, float]:
    near, strength = memory.neighbour[item].tolist(), memory.strength[item].tolist()
    return {neighbour: value for neighbour, value in zip(near, strength, strict=True) if neighbour}


def test_a_neighbour_is_remembered_by_its_share_less_a_discount() -> None:
    # Twice a then b; once a, b, c: c stands two away from a.
    memory = memory_of(walks(("u", "a", 9), ("u", "b", 8), ("v", "a", 5), ("v", "b", 4), ("v", "c", 3)), 3)
    company = 2 + 1 / 2
    assert remembered(memory, A) == pytest.approx({B: (2 - DISCOUNT) / company, C: (1 / 2 - DISCOUNT) / company})
    company = 2 * BACKWARDS + 1
    assert remembered(memory, B) == pytest.approx(
        {C: (1 - DISCOUNT) / company, A: (2 * BACKWARDS - DISCOUNT) / company}
    )


def test_an_item_is_no_neighbour_of_itself_and_users_do_not_mix() -> None:
    memory = memory_of(walks(("u", "a", 9), ("u", "a", 8), ("v", "b", 7)), 3)
    assert all(remembered(memory, item) == {} for item in range(4))


def test_what_was_long_ago_counts_less() -> None:
    old = int(HALF_LIFE_MS)
    memory = memory_of(walks(("u", "a", old + 1), ("u", "b", old), ("v", "a", 1), ("v", "c", 0)), 3)
    assert remembered(memory, A) == pytest.approx({C: (1 - DISCOUNT) / 1.5, B: (1 / 2 - DISCOUNT) / 1.5}, rel=1e-6)


def test_the_strongest_are_kept() -> None:
    names = [f"i{n}" for n in range(MOST_NEIGHBOURS + 6)]
    rows = [
        (f"u{n}-{time}", item, 10 * n + place)
        for n in range(1, len(names))
        for time in range(n + 1)
        for place, item in enumerate(("i0", names[n]))
    ]
    memory = memory_of(histories(clicks_of(rows), Vocabulary(names)), len(names))
    assert set(memory.neighbour[1].tolist()) == set(range(len(names) - MOST_NEIGHBOURS + 1, len(names) + 1))
    assert (memory.strength[1].diff() <= 0).all()


def mixing(newest: float, before: float) -> Network:
    torch.manual_seed(0)
    network = Network(NetworkConfig(items=3, width=8, heads=2, recent=1)).eval()
    strength = torch.tensor([[0.0], [0.5], [0.25], [1.0]])
    network.set_memory(Memory(torch.tensor([[0], [B], [C], [A]]), strength))
    network.blend[1:] = torch.tensor([newest, before])
    return network


def test_what_the_newest_items_remember_is_added_to_the_networks_probabilities() -> None:
    network = mixing(2.0, 4.0)
    scores = torch.tensor([[-np.inf, 0.0, 1.0, 2.0]], dtype=torch.float32)
    history = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0, A, B]])  # b is the newest, a the one before
    expected = scores.softmax(dim=1)
    expected[0, C] += 2.0 * 0.25
    expected[0, B] += 4.0 * 0.5 / 2
    torch.testing.assert_close(network.mixture(scores, history), expected)
    scores[0, C] = -np.inf  # may not be listed: memory does not bring it back
    expected = scores.softmax(dim=1)
    expected[0, B] += 4.0 * 0.5 / 2
    torch.testing.assert_close(network.mixture(scores, history), expected)


def test_the_served_scores_are_as_sharp_as_they_proved_right() -> None:
    network = mixing(0.0, 0.0)
    network.set_recent(torch.rand(4, 1))
    network.blend[0] = 0.7
    network.sharpness.fill_(0.5)
    user, table = torch.randn(2, 8), network.table()
    expected = 0.5 * (user @ table.T + network.popularity) + 0.7 * network.recent_VR[:, 0]
    torch.testing.assert_close(network.served_scores(user, table), expected)
    torch.testing.assert_close(
        network.scores(user, table), user @ table.T + network.popularity + 0.7 * network.recent_VR[:, 0]
    )


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_who_can_be_shown_nothing_is_shown_nothing(weight: float) -> None:
    network = mixing(weight, weight)
    item_index = torch.tensor([[0] * 49 + [A]])
    inputs = {name: torch.ones_like(item_index) for name in ("action", "gap", "age")}
    counters = torch.zeros(1, network.counters.in_features)
    _, score = Scorer(network, 3)(
        item_index, inputs["action"], inputs["gap"], inputs["age"], counters, torch.zeros(4, dtype=torch.bool)
    )
    assert score.tolist() == [[-np.inf] * 3]
