"""A shop whose customers are learned in seconds, and what every test of learning needs beside it."""

from pathlib import Path

import torch
from torch import Tensor

from schemas.features import Vocabulary
from schemas.user_state import HISTORY
from tests.unit.trainer.shop import chain_clicks
from trainer.config import recipe
from trainer.fit import Check, checked
from trainer.network import Network
from trainer.processes import Processes
from trainer.recipe import NetworkConfig, Recipe
from trainer.sequences import Histories, Slices, histories, next_items, slices
from trainer.tune import Course, tune

ITEMS = 200
ALONE = Processes(0, 1, torch.device("cpu"))


def item_ids(items: int = ITEMS) -> list[str]:
    return [f"i{n:03d}" for n in range(items)]


def chain(users: int = 200, events: int = 30, items: int = ITEMS) -> Histories:
    """See `chain_clicks`."""
    return histories(chain_clicks(items, users, events, seed=3), Vocabulary(item_ids(items)))


def cut_of(events: Histories, learned_until: int | None = None) -> Slices:
    cut = slices(events.event_time, learned_until)
    assert cut is not None
    return cut


def small_network(items: int = ITEMS, dropout: float = 0.2) -> Network:
    torch.manual_seed(4)
    return Network(NetworkConfig(items, width=16, heads=2, dropout=dropout))


def usual_recipe(passes: int, first: bool = True) -> Recipe:
    """What a cycle on CPUs does."""
    return recipe(passes, first, on_gpu=False, history=HISTORY)


def learn(
    network: Network, course: Course, passes: int, live: Tensor | None = None, curves: Path | None = None
) -> dict[str, float]:
    everything = torch.ones(network.config.items + 1, dtype=torch.bool)
    first = course.since_ms is None
    live = everything if live is None else live
    return tune(network, course, usual_recipe(passes, first), live, 1, ALONE, curves)


def hit_rate(network: Network, events: Histories, since_ms: int) -> float:
    return checked(network, Check(events, next_items(events, since_ms))).hit
