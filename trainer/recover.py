"""After parts of a network were taken out: what is left learns to say what the whole one said.

It is given the same histories and corrected towards the user vectors of the whole network at every place, until both
score the items alike; the item vectors stay. So nothing is learned anew, and nothing that came after can be learned
by heart: a second fit to the clicks themselves, after the fit that was just stopped in time, would do both.
    "Distilling the Knowledge in a Neural Network", Hinton et al. 2015

Shape suffixes as in network.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.batches import Batch, batches, steps_of_one_pass
from trainer.fit import GRADIENT_LIMIT, Rate
from trainer.network import Network
from trainer.progress import progress, say
from trainer.sequences import Histories, windows_of_one_pass

RATE = 2e-3
# Events of one step; small steps, since each is right about far more than one next item.
EVENTS_PER_STEP = 3200
# So many steps bring what is left within some hundredths of the whole; later ones gain little.
STEPS = 400


@dataclass(frozen=True)
class Recovered:
    """How it went: steps and seconds; share of the variance of the whole network's scores that is missed."""

    steps: int
    seconds: float
    missed: float


def recover(left: Network, whole: Network, histories: Histories, seed: int) -> Recovered:
    """Correct `left`, in place, towards `whole`, both on one device, over windows of the histories."""
    began = time.monotonic()
    device = whole.popularity.device
    whole.eval()
    left.eval()  # dropout would be noise here: the target is exact
    # Both read the same item vectors, which are given and not learned: they get no gradient, and stay.
    table = whole.table().detach()
    scores_by = _scores_by(table)
    optimiser = torch.optim.AdamW(left.parameters(), weight_decay=0.0)
    rate = Rate(RATE, 0, STEPS)
    said = torch.zeros(2, device=device)
    with progress("recover", STEPS) as advance:
        for step, batch in enumerate(_endless(histories, device, seed)):
            with torch.no_grad():
                target = _users(whole, table, batch) @ scores_by
            difference = _users(left, table, batch) @ scores_by - target
            loss = difference.square().sum(dim=1).mean()
            for group in optimiser.param_groups:
                group["lr"] = rate(step)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(left.parameters(), GRADIENT_LIMIT)
            optimiser.step()
            of_late = torch.stack((loss.detach(), (target - target.mean(dim=0)).square().sum(dim=1).mean()))
            said = of_late if step == 0 else torch.lerp(said, of_late, 0.05)
            advance(1)
            if step + 1 == STEPS:
                break
    missed = float(said[0] / said[1])
    seconds = time.monotonic() - began
    say(f"recovered in {seconds:.0f} s, {STEPS} steps: {missed:.1%} of the whole network's scores is missed")
    return Recovered(STEPS, seconds, missed)


def _scores_by(table: Tensor) -> Tensor:
    """[D, D] that makes the squared length of a user vector the variance of its scores over all items."""
    items = table[1:] - table[1:].mean(dim=0)
    values, vectors = torch.linalg.eigh(items.T @ items / len(items))
    scores_by: Tensor = vectors * values.clamp(min=0.0).sqrt()
    return scores_by


def _users(network: Network, table: Tensor, batch: Batch) -> Tensor:
    """[M, D] of all places that hold an event."""
    users: Tensor = network(table, batch.item_index, batch.action, batch.gap, batch.ages(), batch.counters)
    held: Tensor = users[batch.action > 0]
    return held


def _endless(histories: Histories, device: torch.device, seed: int) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    while True:
        windows = windows_of_one_pass(histories, rng)
        steps = steps_of_one_pass(histories, windows, max(1, EVENTS_PER_STEP // histories.history), rng)
        yield from batches(histories, windows, steps, device, slice(None))
