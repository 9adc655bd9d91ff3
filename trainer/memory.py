"""What a count knows and a network of few dimensions forgets: the items that came near an item most often.

    neighbours [V+1, M] of each item, with the share of its company that they were, less a discount

What the user's newest items remember is mixed with what the network expects as one probability with another (see
Network.mixture), the way a cache or the nearest neighbours are mixed into a language model (Kuhn and De Mori, 1990;
Khandelwal et al., 2020); how much is learned in `blend.py`, on events that were not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import DAY_MS
from trainer.sequences import NOT_TARGETS, Histories, Ints, added_up, near_pairs

# What an item that came before counts to the one after it; the other way round it is 1.
BACKWARDS = 0.5
# Taken off every count, as in absolute discounting (Ney et al., 1994): what was seen once says less than its share.
DISCOUNT = 0.4
# What was so long ago counts half: of late people choose otherwise.
HALF_LIFE_MS = 60 * DAY_MS
# Neighbours of an item that are kept: more are rarely among the first places of a list.
MOST_NEIGHBOURS = 24


@dataclass(frozen=True)
class Memory:
    """Of each item [V+1, M]: neighbours int64, 0 = none, and how strongly they are remembered, float32 from 0 to 1."""

    neighbour: Tensor
    strength: Tensor


def memory_of(histories: Histories, items: int) -> Memory:
    """Count who came near whom in the histories."""
    pair, count = _pairs(histories, items)
    owner, near = pair // (items + 1), pair % (items + 1)
    share = np.maximum(0.0, count - DISCOUNT) / np.bincount(owner, count, items + 1)[owner]
    order = np.lexsort((near, -share, owner))
    owner, near, share = owner[order], near[order], share[order]
    begins = np.searchsorted(owner, np.arange(items + 1))
    place = np.arange(len(owner)) - begins[owner]
    kept = place < MOST_NEIGHBOURS
    neighbour = np.zeros((items + 1, MOST_NEIGHBOURS), np.int64)
    strength = np.zeros((items + 1, MOST_NEIGHBOURS), np.float32)
    neighbour[owner[kept], place[kept]] = near[kept]
    strength[owner[kept], place[kept]] = share[kept]
    return Memory(torch.from_numpy(neighbour), torch.from_numpy(strength))


def _pairs(histories: Histories, items: int) -> tuple[Ints, NDArray[np.float64]]:
    """Pairs from item × (V + 1) + near item, rising, and their weighted counts."""
    item = np.where(np.isin(histories.action, NOT_TARGETS), 0, histories.item_index)
    fresh = 0.5 ** ((histories.event_time.max(initial=0) - histories.event_time) / HALF_LIFE_MS)
    keys, weights = [], []
    for apart, before, after in near_pairs(histories, np.arange(len(histories))):
        use = (item[after] > 0) & (item[before] > 0) & (item[after] != item[before])
        older, newer = before[use], after[use]
        for of, near, worth in ((older, newer, 1.0), (newer, older, BACKWARDS)):
            keys.append(item[of] * (items + 1) + item[near])
            weights.append(fresh[newer] * worth / apart)
    return added_up(keys, weights)
