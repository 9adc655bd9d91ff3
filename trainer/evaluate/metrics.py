"""Ranks among all items, and what is made of them.

The rank of the true item counts from 0 over every item that is not masked. Of equal scores the lower index comes
first, so that an arm that scores everything alike gains nothing by it. One true item an event:

    NDCG@10     mean of 1 / log2(rank + 2), 0 from rank 10 on
    HR@10       share of ranks below 10
    MRR@20      mean of 1 / (rank + 1), 0 from rank 20 on
    Recall@20   share of ranks below 20
    coverage@10 share of the catalogue that stands in any list of 10

Shapes: B events scored at once, E events of a group, V items of the catalogue (column 0 of scores means nothing).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelRefused
from trainer.config import TOP
from trainer.sequences import Ints

FAR = 20
METRICS = (f"ndcg@{TOP}", f"hr@{TOP}", f"mrr@{FAR}", f"recall@{FAR}", f"coverage@{TOP}")
Figures = dict[str, float]

_LOW_BITS = 32


def ranks_and_lists(scores: NDArray[np.float32], target: Ints) -> tuple[Ints, Ints]:
    """Rank int64[B] of each target and the first TOP items int64[B, TOP] of each row of scores float32[B, V+1].

    -inf masks: such an item is in no list (0 stands in its place), and as a target it ranks V. Raises ModelRefused on
    scores that are no numbers.
    """
    items = scores.shape[1] - 1
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise ModelRefused("an arm gives scores that are not finite", "look at its loss curve")
    # Adding 0 makes -0 equal to 0. Bits of a float, read as an integer, sort like the float once those of negative
    # ones are turned; the index in the low half makes every key unique and breaks ties.
    bits = (scores[:, 1:] + np.float32(0)).view(np.int32)
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    keys = (bits.astype(np.int64) << _LOW_BITS) | np.arange(items - 1, -1, -1)
    rows = np.arange(len(target))
    of_target = keys[rows, target - 1]
    rank = (keys > of_target[:, None]).sum(axis=1)
    rank = np.where(np.isneginf(scores[rows, target]), items, rank)
    length = min(TOP, items)
    best = np.sort(np.partition(keys, items - length, axis=1)[:, items - length :], axis=1)[:, ::-1]
    index = items - (best & ((1 << _LOW_BITS) - 1))
    lists = np.zeros((len(target), TOP), np.int64)
    lists[:, :length] = np.where(np.isneginf(np.take_along_axis(scores, index, axis=1)), 0, index)
    return rank.astype(np.int64), lists


def figures(rank: Ints, lists: Ints, catalogue: int) -> Figures:
    """All metrics of E events by name, and their number as `events`; of no events only that 0.

    rank: int64[E]. lists: int64[E, TOP], 0 = empty. catalogue: V.
    """
    if len(rank) == 0:
        return {"events": 0.0}
    gain = np.where(rank < TOP, 1.0 / np.log2(rank + 2.0), 0.0)
    reciprocal = np.where(rank < FAR, 1.0 / (rank + 1.0), 0.0)
    listed = np.unique(lists)
    values = (
        gain.mean(),
        (rank < TOP).mean(),
        reciprocal.mean(),
        (rank < FAR).mean(),
        (listed > 0).sum() / catalogue,
    )
    return {"events": float(len(rank)), **dict(zip(METRICS, map(float, values), strict=True))}
