"""The arms by their names, as every evaluation has them; needs no table library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from schemas.errors import ConfigError
from trainer.config import recipe
from trainer.evaluate.arms import Arm, Contestant
from trainer.evaluate.neighbours import Neighbours
from trainer.evaluate.network_arm import NETWORKS, Training
from trainer.evaluate.popularity import LastItem, Popularity, Window, windows_for
from trainer.recipe import NetworkConfig

if TYPE_CHECKING:
    from trainer.evaluate.events import Clock

BASELINES = ("popularity", "last-item", "vmis-knn")


def contestants(
    names: Sequence[str], items: int, clock: Clock, protocol: str, network: Callable[[str, int], Arm]
) -> list[Contestant]:
    """The arms of these names, in their order. network: makes a network arm, given its name and a seed.

    Raises ConfigError for other names.
    """
    # Counted up to each event is fair only where the events before it may be known.
    windows = windows_for(clock, live=protocol != "leave-one-out")
    known = {
        "popularity": Contestant("popularity", tuple(_popularity(each, items) for each in windows), seeded=False),
        "last-item": Contestant("last-item", (lambda _: LastItem(items),), seeded=False),
        "vmis-knn": Contestant("vmis-knn", (lambda _: Neighbours(items, clock),), seeded=False),
        **{name: Contestant(name, (_network(name, network),)) for name in NETWORKS},
    }
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"--arms {','.join(unknown)} is unknown", f"known ones are {', '.join((*BASELINES, *NETWORKS))}"
        )
    return [known[name] for name in names]


def training_for(protocol: str, sizes: NetworkConfig, text: Tensor, passes: int, later_passes: int) -> Training:
    """What all network arms of an evaluation share. text: float32[V+1, T]; passes: of a first fit and of later ones."""
    on_gpu = torch.cuda.is_available()
    first = recipe(passes, True, on_gpu, sizes.history)
    later = recipe(later_passes, False, on_gpu, sizes.history)
    return Training(sizes, first, later, text, timed=protocol != "leave-one-out")


def _popularity(window: Window, items: int) -> Callable[[int], Arm]:
    return lambda _: Popularity(window, items)


def _network(name: str, make: Callable[[str, int], Arm]) -> Callable[[int], Arm]:
    return lambda seed: make(name, seed)
