"""The stages of a fit.

A first network:
 1. learns from what came before the stop slice; after each pass the stop slice (newer in time, not learned from) says
    how good it is, and the best state is kept;
 2. is asked on the stop slice how much memory and recent popularity are worth beside it (see blend.py);
 3. settles: one gentle pass over the stop slice's events, mixed with older ones.
A network that goes on:
 1. is asked the same on the new events, of which it knows nothing yet, about items that it has met;
 2. gives items that it never met a place among those they came with (see `meet`);
 3. learns from the new events and twice as many older ones, drawn evenly over time: a few passes, none of them
    judged. What could be held back to judge by is what there is to learn; whether it may serve is the gate's to say.
Nothing touches the held-back slice that judges the result (see judge.py). While it learns, the network is told how
popular items were just before the new events; before it is served, how popular they are now.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from trainer.blend import fit_blend
from trainer.fit import Check, Checked, Fit
from trainer.memory import memory_of
from trainer.network import Network
from trainer.processes import Processes
from trainer.progress import say
from trainer.recipe import Recipe
from trainer.sequences import (
    Histories,
    Slices,
    Windows,
    evenly,
    newest_windows,
    next_items,
    windows_of_one_pass,
)
from trainer.start import item_counts, know, meet, recent_popularity

# Older windows mixed in for each new one, so that a later fit does not forget, and the spans of time that they are
# drawn from in equal numbers: evenly over time, not over events, of which the newest days may hold most.
OLDER_PER_NEW, OLDER_SPANS = 2.0, 8
# Settling corrects a good network: at the rate of a first fit it would unlearn.
SETTLE_RATE = 1e-3
# Events of the stop slice that are enough to compare two passes.
STOP_EVENTS = 6_000


@dataclass(frozen=True)
class Course:
    """What a fit learns, in its order.

    known: learned passes long. since_ms: the network knows what happened before; None for a first fit. Of a first
    fit alone: check: what it stops by; its histories hold the check events, too. settle_from: the check events begin
    here and are learned in the end; None = they are not.
    """

    known: Histories
    check: Check | None
    since_ms: int | None
    settle_from: int | None
    older_per_new: float = OLDER_PER_NEW


def course_of_cycle(histories: Histories, cut: Slices, learned_until: int | None) -> Course:
    """The course of a cycle of the trainer; nothing in it reaches the held-back slice."""
    settled = histories.before(cut.judge_from)
    if learned_until is not None:
        return Course(settled, None, learned_until, None)
    check = Check(settled, next_items(settled, cut.stop_from))
    return Course(histories.before(cut.stop_from), check, None, cut.stop_from)


def tune(
    network: Network,
    course: Course,
    recipe: Recipe,
    live: Tensor,
    seed: int,
    processes: Processes,
    curves: Path | None = None,
) -> dict[str, float]:
    """Fit in place, on the device of the processes; returns how it went, for the manifest.

    live: bool[V+1], see Objective. curves: folder for TensorBoard.
    """
    began = time.monotonic()
    torch.manual_seed(seed + processes.rank)
    rng = np.random.default_rng(seed)
    network.to(processes.device)
    with ExitStack() as stack:
        writer = None
        if curves is not None and processes.leads:
            writer = stack.enter_context(closing(SummaryWriter(str(curves))))
        stage = _Stage(network, live, course, rng, processes, writer)
        passes, best = stage.first(recipe) if course.since_ms is None else stage.later(recipe, course.since_ms)
    seconds = time.monotonic() - began
    say(f"tuned in {seconds:.0f} s, {passes} of at most {recipe.passes} passes, {stage.steps} steps")
    found = {"tune_seconds": seconds, "tune_passes": float(passes), "tune_steps": float(stage.steps)}
    blend = {f"blend_{place}": float(weight) for place, weight in enumerate(network.blend)}
    return found | blend | ({"stop_loss": best.loss, "stop_ndcg": best.ndcg} if best else {})


class _Stage:
    """The stages of one fit, in place."""

    def __init__(
        self,
        network: Network,
        live: Tensor,
        course: Course,
        rng: np.random.Generator,
        processes: Processes,
        writer: SummaryWriter | None,
    ) -> None:
        self.steps = 0
        self._network, self._live, self._course = network, live, course
        self._rng, self._processes, self._writer = rng, processes, writer

    def first(self, recipe: Recipe) -> tuple[int, Checked | None]:
        """A first network; the passes that counted, and the best result."""
        network, course, check = self._network, self._course, self._course.check
        if check is not None:
            check = Check(check.histories, evenly(check.places, STOP_EVENTS))
        passes, best = self._fit("tune", recipe, course.known, None, check)
        know(network, course.known)
        if check is not None:
            self._blend(check, recipe)
        if check is not None and course.settle_from is not None:
            gentle = replace(recipe, passes=1, rate=min(recipe.rate, SETTLE_RATE))
            self._fit("settle", gentle, check.histories, course.settle_from, None)
            know(network, check.histories)
        return passes, best

    def later(self, recipe: Recipe, since_ms: int) -> tuple[int, None]:
        """A network that goes on."""
        network, known = self._network, self._course.known
        before = known.before(since_ms)
        if network.forgetful():
            network.set_memory(memory_of(before, network.config.items))
        network.set_recent(recent_popularity(before, network.config.items))
        new = Check(known, next_items(known, since_ms))
        self._blend(of_met_items(new, before, network.config.items), recipe)
        meet(network, before, known)
        passes, _ = self._fit("tune", recipe, known, since_ms, None)
        network.set_recent(recent_popularity(known, network.config.items))
        return passes, None

    def _fit(
        self, title: str, recipe: Recipe, histories: Histories, since_ms: int | None, check: Check | None
    ) -> tuple[int, Checked | None]:
        """Passes over everything, or over what came since a moment and some of what was before."""

        def draw() -> Windows:
            if recipe.newest_only:
                return newest_windows(histories)
            return windows_with_older(histories, since_ms, self._course.older_per_new, self._rng)

        fit = Fit(self._network, self._live, recipe, self._rng, self._processes, self._writer, self.steps)
        found = fit.passes(title, histories, draw, check)
        self.steps = fit.step
        return found

    def _blend(self, check: Check, recipe: Recipe) -> None:
        """See blend.py; equal in all processes."""
        if recipe.newest_only:
            return
        network = self._network
        fit_blend(network, check)
        *blend, sharpness = self._processes.agree((*network.blend.tolist(), float(network.sharpness)))
        network.blend.copy_(torch.tensor(blend))
        network.sharpness.fill_(sharpness)


def of_met_items(check: Check, learned: Histories, items: int) -> Check:
    """The events of a check whose item has been met.

    Nobody foresees the others. Counted in, they teach that nobody knows much, and where the catalogue changes quickly
    that costs the lists more than a fit brings: with them NDCG@10 is .2271 on Online Retail, .2841 on YooChoose and
    .0348 on KuaiRand, without them .2302, .2865 and .0350 (seed 1, prequential). A first fit, whose stop slice follows
    at once, is asked about all: the demo's first model is .0554 so, and .0524 without them.
    """
    met = item_counts(learned, items).numpy() > 0
    return Check(check.histories, check.places[met[check.histories.item_index[check.places]]])


def windows_with_older(
    histories: Histories, since_ms: int | None, older_per_new: float, rng: np.random.Generator
) -> Windows:
    """The windows of one pass: all of them; or those with targets since a moment, and some older ones.

    Older ones are drawn in equal numbers from OLDER_SPANS equal spans of time, as far as each has them.
    """
    windows = windows_of_one_pass(histories, rng)
    if since_ms is None:
        return windows
    time_of = histories.event_time[windows.newest + 1]
    new = np.flatnonzero(time_of >= since_ms)
    older = rng.permutation(np.flatnonzero(time_of < since_ms))
    wanted = int(older_per_new * len(new))
    if len(older) > wanted:
        edges = np.linspace(time_of[older].min(), since_ms, OLDER_SPANS + 1)[1:-1]
        span = np.searchsorted(edges, time_of[older], side="right")
        # Round by round the next window of each span; spans that have none left are passed over.
        turn = np.empty(len(older), np.int64)
        for one in range(OLDER_SPANS):
            turn[span == one] = np.arange(np.count_nonzero(span == one))
        older = older[np.argsort(turn, kind="stable")][:wanted]
    return windows.take(np.concatenate((new, older)))
