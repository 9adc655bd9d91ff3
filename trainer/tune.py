"""The stages of a fit: from everything known, or from what is new; then a gentle pass over the newest events.

 1. learn from what came before the stop slice: all of it for a first network; for one that goes on, the new events
    and as many older ones, drawn evenly over time; after each pass the stop slice (newer in time, not learned from)
    says how good it is, and the best state is kept;
 2. settle: one gentle pass over the stop slice's events, mixed with older ones.
Neither touches the held-back slice that judges the result (see judge.py). In each stage the network is told how
popular items were just before the events that it learns from; before it is served, how popular they are now.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from trainer.blend import fit_blend
from trainer.fit import Check, Fit
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
from trainer.start import know

# Older windows mixed in for each new one, so that a later fit does not forget, and the spans of time that they are
# drawn from in equal numbers: evenly over time, not over events, of which the newest days may hold most.
OLDER_PER_NEW, OLDER_SPANS = 1.0, 8
# Settling corrects a good network: at the rate of a first fit it would unlearn.
SETTLE_RATE = 1e-3
# Events of the stop slice that are enough to compare two passes.
STOP_EVENTS = 6_000


@dataclass(frozen=True)
class Course:
    """What a fit learns, in its order.

    known: learned passes long. check: what it stops by; its histories hold the check events, too. since_ms: the
    network knows what happened before; None for a first fit. settle_from: the check events begin here and are
    learned in the end; None = they are not.
    """

    known: Histories
    check: Check | None
    since_ms: int | None
    settle_from: int | None
    older_per_new: float = OLDER_PER_NEW


def course_of_cycle(histories: Histories, cut: Slices, learned_until: int | None) -> Course:
    """The course of a cycle of the trainer; nothing in it reaches the held-back slice."""
    settled = histories.before(cut.judge_from)
    check = Check(settled, next_items(settled, cut.stop_from))
    return Course(histories.before(cut.stop_from), check, learned_until, cut.stop_from)


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
    known, since = course.known, course.since_ms
    check = course.check
    if check is not None:
        check = Check(check.histories, evenly(check.places, STOP_EVENTS))
    network.to(processes.device)
    with ExitStack() as stack:
        writer = None
        if curves is not None and processes.leads:
            writer = stack.enter_context(closing(SummaryWriter(str(curves))))
        if since is not None:
            know(network, known.before(since))
        fit = Fit(network, live, recipe, rng, processes, writer)
        passes, best = fit.passes("tune", known, _drawing(known, since, course, recipe, rng), check)

        know(network, known)
        if check is not None and not recipe.newest_only:
            fit_blend(network, check)
            network.blend.copy_(torch.tensor(processes.agree(network.blend.tolist())))
        if check is not None and course.settle_from is not None:
            gentle = replace(recipe, passes=1, rate=min(recipe.rate, SETTLE_RATE))
            fit = Fit(network, live, gentle, rng, processes, writer, fit.step)
            fit.passes(
                "settle", check.histories, _drawing(check.histories, course.settle_from, course, gentle, rng), None
            )
            know(network, check.histories)
    seconds = time.monotonic() - began
    say(f"tuned in {seconds:.0f} s, {passes} of at most {recipe.passes} passes, {fit.step} steps")
    found = {"tune_seconds": seconds, "tune_passes": float(passes), "tune_steps": float(fit.step)}
    blend = {f"blend_{place}": float(weight) for place, weight in enumerate(network.blend)}
    return found | blend | ({"stop_loss": best.loss, "stop_ndcg": best.ndcg} if best else {})


def _drawing(
    histories: Histories, since_ms: int | None, course: Course, recipe: Recipe, rng: np.random.Generator
) -> Callable[[], Windows]:
    if recipe.newest_only:
        return lambda: newest_windows(histories)
    return lambda: windows_with_older(histories, since_ms, course.older_per_new, rng)


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
