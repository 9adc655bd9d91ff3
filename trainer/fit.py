"""The loop that learns: passes over windows, the average of the weights along the way, when to stop.

After each pass the averaged weights are asked about events that nothing is learned from; the best average is
what the fit leaves in the network.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from trainer.batches import batches, steps_of_one_pass
from trainer.config import TOP
from trainer.network import Network, tensors
from trainer.objective import Objective
from trainer.processes import Processes
from trainer.progress import Advance, progress
from trainer.recipe import Recipe
from trainer.sequences import Histories, Ints, Windows

# See Recipe.steps: no step is smaller than this many events.
LEAST_EVENTS = 200
WARM_UP_STEPS = 50
# Share of the rate that is left at the end of a fit.
LAST_SHARE = 0.05
GRADIENT_LIMIT = 1.0
# Histories scored at once while evaluating: bounds the score matrix (this × items × 4 bytes).
EVALUATED_AT_ONCE = 256


@dataclass(frozen=True)
class Check:
    """Events to stop training by and to choose parameters on; never tested on.

    histories: everything that happened before the test, the check events included, so that they may be counted or
    briefly learned in the end. places: int64[C], the check events in it.
    """

    histories: Histories
    places: Ints

    @property
    def begins_ms(self) -> int:
        """When the first of its events happened."""
        return int(self.histories.event_time[self.places].min())


@dataclass(frozen=True)
class Checked:
    """Mean cross-entropy, NDCG and hit rate on the events of a check."""

    loss: float
    ndcg: float
    hit: float


class Fit:
    """A network with its optimiser, its averaged weights and its curves."""

    def __init__(
        self,
        network: Network,
        live: Tensor,
        recipe: Recipe,
        rng: np.random.Generator,
        processes: Processes,
        writer: SummaryWriter | None,
        step: int = 0,
    ) -> None:
        """live: bool[V+1], see Objective. step: number of the first step, for the curves."""
        self.step = self._began = step
        self.recipe = recipe
        self._network = network
        self._averaged = copy.deepcopy(network).eval() if recipe.average else network
        self._rng, self._writer, self._processes = rng, writer, processes
        self._device = network.popularity.device
        objective = Objective(network, live.to(self._device), recipe.id_dropout)
        self._objective: torch.nn.Module = objective
        if processes.count > 1:
            self._objective = DistributedDataParallel(objective, broadcast_buffers=False)
        self._optimiser = _optimiser(network, recipe)

    def passes(
        self, title: str, histories: Histories, draw: Callable[[], Windows], check: Check | None
    ) -> tuple[int, Checked | None]:
        """Run passes over windows drawn anew until they are enough; the passes that counted, the best result."""
        recipe = self.recipe
        best = self.check(check) if check else None
        best_state = _state(self._averaged)
        done, counted = 0, 0
        windows = draw()
        held = np.minimum(windows.newest - histories.first[windows.newest] + 1, histories.history)
        events = max(LEAST_EVENTS, int(held.sum()) // recipe.steps)
        per_step = max(1, min(recipe.per_step, events // histories.history))
        steps = steps_of_one_pass(histories, windows, per_step, self._rng)
        rate = Rate(recipe.rate, self.step, recipe.passes * len(steps), recipe.constant)
        began = time.monotonic()
        with progress(title, rate.steps) as advance:
            while done < recipe.passes:
                if done > 0:
                    windows = draw()
                    steps = steps_of_one_pass(histories, windows, per_step, self._rng)
                self._one_pass(histories, windows, steps, rate, advance)
                done += 1
                if check is None:
                    continue
                result = self.check(check)
                note = f"loss {result.loss:.3f} NDCG@{TOP} {result.ndcg:.4f} HR@{TOP} {result.hit:.4f}"
                advance(0, f"pass {done} {note} {time.monotonic() - began:.0f} s")
                if best is None or better(result, best):
                    best, best_state, counted = result, _state(self._averaged), done
                elif done - counted >= recipe.patience:
                    break
        if check is None:
            best_state, counted = _state(self._averaged), done
        self._network.load_state_dict(best_state)
        self._averaged.load_state_dict(best_state)
        return counted, best

    def _one_pass(
        self, histories: Histories, windows: Windows, steps: list[Ints], rate: Rate, advance: Advance
    ) -> None:
        """Learn from the steps' windows once; with several processes each takes its share of a step."""
        network, processes = self._network.train(), self._processes
        share = slice(processes.rank, None, processes.count)
        losses: list[Tensor] = []
        for batch in batches(histories, windows, steps, self._device, share):
            for group in self._optimiser.param_groups:
                group["lr"] = rate(self.step)
            targets = processes.total((batch.target > 0).sum()).clamp(min=1)
            with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
                # Processes' gradients are averaged: each must bring its part of the whole step's mean.
                loss = self._objective(batch) * processes.count / targets
            self._optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_LIMIT)
            self._optimiser.step()
            self._average()
            losses.append(loss.detach())
            self.step += 1
            advance(1)
        if self._writer and losses:
            for back, loss_of_step in enumerate(reversed(torch.stack(losses).tolist())):
                self._writer.add_scalar("loss/train", loss_of_step, self.step - 1 - back)

    @torch.no_grad()
    def check(self, check: Check) -> Checked:
        """How well the averaged weights foresee the events of a check."""
        result = checked(self._averaged, check)
        if self._writer:
            for name, value in vars(result).items():
                self._writer.add_scalar(f"{name}/newer", value, self.step)
        return Checked(*self._processes.agree(tuple(vars(result).values())))

    def _average(self) -> None:
        if not self.recipe.average:
            return
        # Early steps move far: their average is short.
        steps = self.step - self._began
        keep = min(self.recipe.average, (1 + steps) / (10 + steps))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._averaged.parameters()), list(self._network.parameters()), 1 - keep)


@dataclass(frozen=True)
class Rate:
    """Learning rate by step: a short rise, then half a cosine down to LAST_SHARE, or constant."""

    highest: float
    begin: int
    steps: int
    constant: bool = False

    def __call__(self, step: int) -> float:
        done = min(1.0, (step - self.begin) / max(self.steps, 1))
        rise = min(1.0, (step - self.begin + 1) / WARM_UP_STEPS)
        fall = 1.0 if self.constant else LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done))
        return self.highest * rise * fall


def better(result: Checked, best: Checked) -> bool:
    """Lists are what is served, so their quality decides."""
    return result.ndcg > best.ndcg


@torch.no_grad()
def checked(network: Network, check: Check) -> Checked:
    """How well a network foresees events: each from the history before it, its own items masked."""
    network.eval()
    histories, places = check.histories, check.places
    loss = ndcg = hit = 0.0
    table = network.table()
    for begin in range(0, len(places), EVALUATED_AT_ONCE):
        at = places[begin : begin + EVALUATED_AT_ONCE]
        target = torch.from_numpy(histories.item_index[at]).to(table.device)
        scores = score_all(network, table, histories, at - 1)
        loss += float(torch.nn.functional.cross_entropy(scores, target, reduction="sum"))
        own = scores.gather(1, target[:, None])
        rank = (scores > own).sum(dim=1)
        hit += float((rank < TOP).sum())
        ndcg += float(gains(rank).sum())
    count = max(len(places), 1)
    return Checked(loss / count, ndcg / count, hit / count)


def hide_own(scores: Tensor, histories: Histories, seen: Tensor) -> None:
    """Mask in scores [B, V+1] what is not listed: index 0, and what the user had, int64[B, L], unless it may repeat."""
    scores[:, 0] = float("-inf")
    if not histories.repeats:
        scores.scatter_(1, seen, float("-inf"))


def gains(rank: Tensor) -> Tensor:
    """What each rank, from 0, brings to NDCG."""
    return (rank < TOP) / torch.log2(rank + 2.0)


@torch.no_grad()
def score_all(network: Network, table: Tensor, histories: Histories, newest: Ints) -> Tensor:
    """Scores float32[W, V+1] of all items, on the network's device, after the events at these places; see hide_own."""
    scores = score_network(network, table, histories, newest)
    seen = torch.from_numpy(histories.seen(newest)).to(table.device)
    hide_own(scores, histories, seen)
    return network.mixture(scores, seen).log() if network.remembering() else scores


@torch.no_grad()
def score_network(network: Network, table: Tensor, histories: Histories, newest: Ints) -> Tensor:
    """The same without memory and masks."""
    inputs = {name: values.to(table.device) for name, values in tensors(histories.inputs(newest)).items()}
    inputs["age"] = inputs["age"][:, None]
    inputs["counters"] = inputs["counters"][:, None]
    user = network(table, **inputs)[:, 0]
    return network.served_scores(user, table).float()


def _optimiser(network: Network, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = list(network.parameters())
    # Norms and biases are few and must be free to move; decay is for the matrices.
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    on_gpu = network.popularity.device.type == "cuda"
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=on_gpu)


def _state(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
