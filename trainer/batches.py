"""Windows → tensors on the training device, prepared one chunk ahead of the step that learns from them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from schemas.features import GAP_BUCKETS
from trainer.sequences import Histories, Ints, Windows

# Events per chunk that is prepared at once: some 40 MB with all inputs.
CHUNK_EVENTS = 250_000
# Bucket b of `schemas.features.time_bucket` begins at this many ms, b = 2, 3, …
BUCKET_BEGINS_MS = [((1 << bits) - 1) * 1000 for bits in range(1, GAP_BUCKETS - 1)]


@dataclass(frozen=True)
class Batch:
    """Windows to learn from, [W, L] each; counters [W, L, C]."""

    item_index: Tensor
    action: Tensor
    gap: Tensor
    event_time: Tensor
    counters: Tensor
    target: Tensor

    def take(self, rows: slice) -> Batch:
        """These windows of the batch."""
        return Batch(**{name: values[rows] for name, values in vars(self).items()})

    def ages(self) -> Tensor:
        """Bucket of the time from event j up to place i: int64[W, L, L]; of later events 1."""
        begins = torch.tensor(BUCKET_BEGINS_MS, device=self.event_time.device)
        span = self.event_time[:, :, None] - self.event_time[:, None, :]
        return torch.bucketize(span, begins, right=True) + 1


def batches(
    histories: Histories, windows: Windows, order: Ints, per_step: int, device: torch.device, share: slice
) -> Iterator[Batch]:
    """The batches of one pass: `per_step` windows each in the given order, of each this share of its rows.

    share: slice(rank, None, processes). A last step with fewer windows than processes is left out.
    """
    steps = [order[at : at + per_step] for at in range(0, len(order), per_step)]
    steps = [step[share] for step in steps if len(step) >= (share.step or 1)]
    steps_per_chunk = max(1, CHUNK_EVENTS // (per_step * histories.history))
    chunks = [steps[at : at + steps_per_chunk] for at in range(0, len(steps), steps_per_chunk)]
    with ThreadPoolExecutor(1) as ahead:
        waiting = None
        for chunk in [*chunks, None]:
            following = ahead.submit(_load, histories, windows, np.concatenate(chunk)) if chunk else None
            if waiting is not None:
                loaded, sizes = waiting
                yield from _split(_to(loaded.result(), device), sizes)
            waiting = (following, [len(step) for step in chunk]) if chunk and following else None


def _load(histories: Histories, windows: Windows, chosen: Ints) -> Batch:
    taken = windows.take(chosen)
    inputs = histories.inputs(taken.newest)
    place, real = histories.slots(taken.newest)
    # Padding is given its window's oldest time, that no span overflows.
    times = histories.event_time[np.where(real, place, histories.first[taken.newest][:, None])]
    return Batch(
        item_index=torch.from_numpy(inputs["item_index"]),
        action=torch.from_numpy(inputs["action"]),
        gap=torch.from_numpy(inputs["gap"]),
        event_time=torch.from_numpy(times),
        counters=torch.from_numpy(histories.counters(np.where(real, place, taken.newest[:, None]))),
        target=torch.from_numpy(histories.targets(taken)),
    )


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(**{name: values.to(device, non_blocking=True) for name, values in vars(batch).items()})


def _split(batch: Batch, sizes: list[int]) -> Iterator[Batch]:
    at = 0
    for size in sizes:
        yield batch.take(slice(at, at + size))
        at += size
