"""Fits the network: a first fit from counts, or a short one that goes on from the served model.

 1. learn from everything before the stop slice; after each pass the stop slice (newer in time, not
    learned from) says how good it is, and the best state is kept;
 2. settle: one gentle pass over the stop slice's events, mixed with older ones.
Neither touches the held-back slice that judges the result (see judge.py).
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from trainer.config import WINDOWS_PER_STEP, Plan
from trainer.cooccurrence import item_vectors
from trainer.files import write_whole
from trainer.network import Network, NetworkConfig, tensors
from trainer.progress import Advance, progress, say
from trainer.sequences import (
    Histories,
    Ints,
    Slices,
    Windows,
    evenly,
    next_items,
    windows_of_one_pass,
)

FIRST_RATE = 3e-3
# Later cycles and settling correct a good model: at the full rate they would unlearn it.
LATER_RATE = 1e-3
WARM_UP_STEPS = 50
# Share of the rate that is left at the end of a fit.
LAST_SHARE = 0.05
WEIGHT_DECAY = 0.01
GRADIENT_LIMIT = 1.0
# Older windows mixed in for each new one, so that a later cycle does not forget.
OLDER_PER_NEW = 1.0
# Events of the stop slice that are enough to compare two passes.
STOP_EVENTS = 4_000
# Histories scored at once while evaluating: bounds the score matrix (this × items × 4 bytes).
EVALUATED_AT_ONCE = 256
# Vectors of items that a served model did not know start small, so that they disturb nothing.
NEW_ITEM_SPREAD = 0.02


def start_network(checkpoint: Path | None, histories: Histories, items: int, seed: int) -> Network:
    """The network of a checkpoint, or a first one when there is none to go on from.

    histories: what may be learned from; a first network takes its start from counts over them.
    """
    if checkpoint is not None:
        return grown_network(checkpoint, items, seed)
    return first_network(histories, items, seed)


def first_network(histories: Histories, items: int, seed: int) -> Network:
    """A network whose item vectors and popularity start from counts over the histories."""
    torch.manual_seed(seed)
    network = Network(NetworkConfig(items=items))
    with torch.no_grad():
        network.item.weight.copy_(item_vectors(histories, items, network.config.width, seed))
    counts = np.bincount(histories.item_index, minlength=items + 1)
    network.set_popularity(torch.from_numpy(counts))
    return network


def grown_network(checkpoint: Path, items: int, seed: int) -> Network:
    """The network of a checkpoint with room for `items` items: known ones keep their index.

    Raises OSError, or RuntimeError and KeyError when the file is not a checkpoint of this version.
    """
    stored: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    config = NetworkConfig(**{**stored["config"], "items": items})
    torch.manual_seed(seed)
    network = Network(config)
    state = stored["state"]
    known = len(state["popularity"])
    with torch.no_grad():
        item = torch.randn(items + 1, config.width) * NEW_ITEM_SPREAD
        item[:known] = state["item.weight"]
        # A new item starts as little bought as the least bought known one.
        popularity = torch.full((items + 1,), float(state["popularity"].min()))
        popularity[:known] = state["popularity"]
    network.load_state_dict({**state, "item.weight": item, "popularity": popularity})
    return network


def save_checkpoint(network: Network, target: Path) -> None:
    """Everything needed to go on from this network, in one file that appears whole."""
    content = {"config": asdict(network.config), "state": network.state_dict()}
    write_whole(target, lambda path: torch.save(content, path))


def tune(
    network: Network,
    histories: Histories,
    slices: Slices,
    learned_until: int | None,
    plan: Plan,
    curves: Path,
) -> dict[str, float]:
    """Fit in place; returns how it went, for the manifest.

    learned_until: ms, what the network already knows; None for a first fit.
    """
    began = time.monotonic()
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    later = learned_until is not None
    passes_allowed = plan.later_passes if later else plan.first_passes
    rate = LATER_RATE if later else FIRST_RATE
    known = histories.before(slices.stop_from)
    settled = histories.before(slices.judge_from)
    stop_at = evenly(next_items(settled, slices.stop_from), STOP_EVENTS)
    passes = [_mixed(known, learned_until, rng) for _ in range(passes_allowed)]
    recent = _mixed(settled, slices.stop_from, rng)

    with closing(SummaryWriter(str(curves))) as writer:
        fit = _Fit(network, rng, writer)
        best_loss, best, done = fit.loss_at(settled, stop_at), _state(network), 0
        steps = sum(map(_steps, passes))
        with progress("tune", steps) as advance:
            for windows in passes:
                done += 1
                fit.one_pass(known, windows, _Rate(rate, 0, steps), advance)
                loss = fit.loss_at(settled, stop_at)
                advance(0, f"loss {loss:.3f}")
                if not loss < best_loss:
                    network.load_state_dict(best)
                    break
                best_loss, best = loss, _state(network)
        with progress("settle", _steps(recent)) as advance:
            fit.one_pass(settled, recent, _Rate(LATER_RATE, fit.step, _steps(recent)), advance)
    seconds = time.monotonic() - began
    say(f"tuned in {seconds:.0f} s, {done} of at most {passes_allowed} passes")
    return {"tune_seconds": seconds, "tune_passes": float(done), "stop_loss": best_loss}


@dataclass(frozen=True)
class _Rate:
    """Learning rate by step: a short rise, then half a cosine down to LAST_SHARE."""

    highest: float
    begin: int
    steps: int

    def __call__(self, step: int) -> float:
        done = (step - self.begin) / max(self.steps, 1)
        rise = min(1.0, (step - self.begin + 1) / WARM_UP_STEPS)
        fall = LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done))
        return self.highest * rise * fall


class _Fit:
    """A network with its optimiser and its curves."""

    def __init__(self, network: Network, rng: np.random.Generator, writer: SummaryWriter) -> None:
        self.step = 0
        self._network = network
        self._rng = rng
        self._writer = writer
        # Norms and biases are few and must be free to move; decay is for the matrices.
        matrices = [p for p in network.parameters() if p.ndim > 1]
        vectors = [p for p in network.parameters() if p.ndim == 1]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": WEIGHT_DECAY},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
        )

    def one_pass(self, histories: Histories, windows: Windows, rate: _Rate, advance: Advance) -> None:
        """Learn from the windows once, in random order."""
        network, optimiser = self._network.train(), self._optimiser
        order = self._rng.permutation(len(windows))
        for begin in range(0, len(windows), WINDOWS_PER_STEP):
            chosen = windows.take(order[begin : begin + WINDOWS_PER_STEP])
            target = torch.from_numpy(histories.targets(chosen))
            wanted = target > 0
            if wanted.any():
                for group in optimiser.param_groups:
                    group["lr"] = rate(self.step)
                user = network(**tensors(histories.inputs(chosen.newest)))
                loss = F.cross_entropy(network.scores(user[wanted]), target[wanted])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_LIMIT)
                optimiser.step()
                self._writer.add_scalar("loss/train", loss.item(), self.step)
            self.step += 1
            advance(1)

    @torch.no_grad()
    def loss_at(self, histories: Histories, places: Ints) -> float:
        """Mean cross-entropy of the items at these places, each from the history before it."""
        network = self._network.eval()
        total = 0.0
        for begin in range(0, len(places), EVALUATED_AT_ONCE):
            at = places[begin : begin + EVALUATED_AT_ONCE]
            user = network(**tensors(histories.inputs(at - 1)), last_only=True)
            target = torch.from_numpy(histories.item_index[at])
            total += F.cross_entropy(network.scores(user), target, reduction="sum").item()
        loss = total / max(len(places), 1)
        self._writer.add_scalar("loss/newer", loss, self.step)
        return loss


def _mixed(histories: Histories, since_ms: int | None, rng: np.random.Generator) -> Windows:
    """The windows of one pass: all; or those with targets since a moment, and some older ones."""
    windows = windows_of_one_pass(histories, rng)
    if since_ms is None:
        return windows
    new = histories.event_time[windows.newest + 1] >= since_ms
    older = np.flatnonzero(~new)
    sampled = rng.permutation(older)[: int(OLDER_PER_NEW * new.sum())]
    return windows.take(np.concatenate((np.flatnonzero(new), sampled)))


def _steps(windows: Windows) -> int:
    return -(-len(windows) // WINDOWS_PER_STEP)


def _state(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
