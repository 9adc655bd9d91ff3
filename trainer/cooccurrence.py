"""Where item vectors start: items that follow each other closely begin close to each other.

A transformer over a few hundred thousand events spends most of its first passes on finding out
which items go together. That can be counted: positive pointwise mutual information of items at most
NEAR events apart, factorised to the network's width (Levy and Goldberg, 2014), says it in seconds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainer.sequences import Histories, near_pairs

# Pairs seen n times are trusted n / (n + DISCOUNT): rare pairs have high information by chance.
DISCOUNT = 5.0
# Part of the usual random start that stays, so that items without any pair differ from each other.
RANDOM_PART = 0.02
# Dimensions and rounds beyond the wanted ones that make the randomised factorisation exact enough.
EXTRA_RANK, ROUNDS = 16, 3


def item_vectors(histories: Histories, items: int, width: int, seed: int) -> Tensor:
    """Vectors float32[V+1, D] of mean length 1, row 0 zero. Deterministic for a seed."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(items + 1, width, generator=generator) * RANDOM_PART
    information = _information(histories, items)
    rank = min(width, items)
    if information is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            left, strength, _ = torch.svd_lowrank(information, q=min(rank + EXTRA_RANK, items), niter=ROUNDS)
        factor = (left * strength.sqrt())[:, :rank]
        length = factor.norm(dim=1)
        vectors[:, :rank] += factor / length[length > 0].mean()
    vectors[0] = 0.0
    return vectors


def _information(histories: Histories, items: int) -> Tensor | None:
    """Sparse symmetric [V+1, V+1]; None when no two items ever stand together."""
    pairs = []
    for _, older, newer in near_pairs(histories, histories.item_index):
        use = (newer > 0) & (older > 0) & (newer != older)
        low = np.minimum(newer, older)[use]
        high = np.maximum(newer, older)[use]
        pairs.append(low * (items + 1) + high)
    pair, count = np.unique(np.concatenate(pairs), return_counts=True)
    if len(pair) == 0:
        return None
    row, column = pair // (items + 1), pair % (items + 1)
    both = np.bincount(row, count, items + 1) + np.bincount(column, count, items + 1)
    information = np.log(2.0 * count.sum() * count / (both[row] * both[column]))
    weight = np.maximum(information, 0.0) * count / (count + DISCOUNT)
    places = np.stack((np.concatenate((row, column)), np.concatenate((column, row))))
    values = np.concatenate((weight, weight)).astype(np.float32)
    return torch.sparse_coo_tensor(
        torch.from_numpy(places),
        torch.from_numpy(values),
        (items + 1, items + 1),
        check_invariants=True,
    ).coalesce()
