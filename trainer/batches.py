"""Windows → tensors on the training device, prepared one chunk ahead of the step that learns from them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

    def take(self, rows: slice, longest: int) -> Batch:
        """These windows of the batch, of which none holds more than `longest` events."""
        return Batch(**{name: values[rows, -longest:] for name, values in vars(self).items()})

    def ages(self) -> Tensor:
        """Bucket of the time from event j up to place i: int64[W, L, L]; of later events 1."""
        begins = torch.tensor(BUCKET_BEGINS_MS, device=self.event_time.device)
        span = self.event_time[:, :, None] - self.event_time[:, None, :]
        return torch.bucketize(span, begins, right=True) + 1


def steps_of_one_pass(histories: Histories, windows: Windows, per_step: int, rng: np.random.Generator) -> list[Ints]:
    """Places in the list of windows, drawn at random into steps, each window in one.

    A step takes as long as its longest window, so windows of like length go together: `per_step` full ones, or more
    short ones, so that all steps hold about as many events.
    """
    held = np.minimum(windows.newest - histories.first[windows.newest] + 1, histories.history)
    order = rng.permutation(len(windows))
    order = order[np.argsort(held[order], kind="stable")]
    held = held[order]
    steps, begin, slots = [], 0, per_step * histories.history
    while begin < len(order):
        size = min(slots // held[begin], len(order) - begin)
        while size * held[begin + size - 1] > slots:
            size = slots // held[begin + size - 1]
        steps.append(order[begin : begin + size])
        begin += size
    return [steps[place] for place in rng.permutation(len(steps))]


def batches(
    histories: Histories, windows: Windows, steps: list[Ints], device: torch.device, share: slice
) -> Iterator[Batch]:
    """The batches of the steps of one pass, of each this share of its windows.

    share: slice(rank, None, processes). A step with fewer windows than processes is left out.
    """
    steps = [step[share] for step in steps if len(step) >= (share.step or 1)]
    with ThreadPoolExecutor(1) as ahead:
        loading: deque[tuple[Future[Batch], list[int]]] = deque()
        for chunk in _chunks(steps, CHUNK_EVENTS // histories.history):
            loading.append((ahead.submit(_load, histories, windows, np.concatenate(chunk)), list(map(len, chunk))))
            if len(loading) > 1:
                loaded, sizes = loading.popleft()
                yield from _split(_to(loaded.result(), device), sizes)
        for loaded, sizes in loading:
            yield from _split(_to(loaded.result(), device), sizes)


def _chunks(steps: list[Ints], enough: int) -> Iterator[list[Ints]]:
    """The steps in their order, in groups that end as soon as they hold enough windows."""
    chunk: list[Ints] = []
    held = 0
    for step in steps:
        chunk.append(step)
        held += len(step)
        if held >= enough:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


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
    held = (batch.action > 0).sum(dim=1).tolist()
    at = 0
    for size in sizes:
        yield batch.take(slice(at, at + size), max(held[at : at + size]))
        at += size
