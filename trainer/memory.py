"""What a count knows and a network of few dimensions forgets: the items that came near an item most often.

    neighbours [V+1, M] of each item, with log(1 + how often, nearer counting more)

The network's score of an item is raised by what the user's newest items remember of it (see Network.remembered);
how much is learned in `blend.py`, on events that were not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.sequences import NOT_TARGETS, Histories, Ints, added_up, near_pairs

# What an item that came before counts to the one after it; the other way round it is 1.
BACKWARDS = 0.5
# Neighbours of an item that are kept: more are rarely among the first places of a list.
MOST_NEIGHBOURS = 24


@dataclass(frozen=True)
class Memory:
    """Of each item [V+1, M]: neighbours int64, 0 = none, and how strongly they are remembered, float32 ≥ 0."""

    neighbour: Tensor
    strength: Tensor


def memory_of(histories: Histories, items: int) -> Memory:
    """Count who came near whom in the histories."""
    pair, count = _pairs(histories, items)
    owner, near = pair // (items + 1), pair % (items + 1)
    order = np.lexsort((near, -count, owner))
    owner, near, count = owner[order], near[order], count[order]
    begins = np.searchsorted(owner, np.arange(items + 1))
    place = np.arange(len(owner)) - begins[owner]
    kept = place < MOST_NEIGHBOURS
    neighbour = np.zeros((items + 1, MOST_NEIGHBOURS), np.int64)
    strength = np.zeros((items + 1, MOST_NEIGHBOURS), np.float32)
    neighbour[owner[kept], place[kept]] = near[kept]
    strength[owner[kept], place[kept]] = np.log1p(count[kept])
    return Memory(torch.from_numpy(neighbour), torch.from_numpy(strength))


def _pairs(histories: Histories, items: int) -> tuple[Ints, NDArray[np.float64]]:
    """Pairs from item × (V + 1) + near item, rising, and their weighted counts."""
    item = np.where(np.isin(histories.action, NOT_TARGETS), 0, histories.item_index)
    keys, weights = [], []
    for apart, older, newer in near_pairs(histories, item):
        use = (newer > 0) & (older > 0) & (newer != older)
        for of, near, worth in ((older, newer, 1.0), (newer, older, BACKWARDS)):
            keys.append((of * (items + 1) + near)[use])
            weights.append(np.full(len(keys[-1]), worth / apart))
    return added_up(keys, weights)
