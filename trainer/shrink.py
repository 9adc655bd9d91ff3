"""Full model → a smaller, faster one that answers nearly alike, with the receipt that says so.

How is said by `ways.py`. The full model is exported in any case: it is what later cycles go on from, and what is
published where the shrunk one loses more than its bound.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from torch import Tensor

from schemas.errors import ModelRefused
from schemas.recommendation import LIST_LENGTH
from schemas.release import FILES, ITEMS, MODEL, WARMUP
from trainer.config import TOP
from trainer.export import INPUTS, open_graph, write_warmup
from trainer.lean import lay
from trainer.network import Network
from trainer.progress import say
from trainer.prune import FEED_KEPT, HEADS_KEPT, importance_of, pruned, shared
from trainer.quantize import observed_ranges, with_fewer_neighbours
from trainer.receipt import Side, receipt_of, refusal
from trainer.recover import recover
from trainer.sequences import Histories, Ints, next_items

if TYPE_CHECKING:
    from trainer.material import Material  # which reads tables; a GPU host that fits and shrinks has nothing for them

# Beside the full model's, in one folder.
_SHRUNK = "shrunk"


@dataclass(frozen=True)
class Full:
    """A fitted network, and what a shrunk one is made of and measured by.

    learned: all it has learned from; newest_from: the events since then, ms, tell what matters now. live: see
    Objective. steps, seconds: of its fit. events, places: histories, and those of their events that it has not learned.
    """

    network: Network
    learned: Histories
    newest_from: int | None
    live: Tensor
    steps: float
    seconds: float
    events: Histories
    places: Ints


def full_of(material: Material, network: Network, fit: Mapping[str, float]) -> Full:
    """What a cycle has fitted; fit: as of tune."""
    return Full(
        network=network,
        learned=material.settled,
        newest_from=material.cut.stop_from,
        live=torch.from_numpy(material.live),
        steps=fit["tune_steps"],
        seconds=fit["tune_seconds"],
        events=material.events,
        places=next_items(material.events, material.cut.judge_from),
    )


@dataclass(frozen=True)
class Narrow:
    """What is left of a network; steps and seconds of its own fit, 0 without one."""

    network: Network
    steps: float = 0.0
    seconds: float = 0.0


def narrowed(full: Full, ways: Sequence[str], seed: int) -> Narrow:
    """The network with fewer parts, recovered; the same network where no way asks for that."""
    if not {"pruned", "shared"} & set(ways):
        return Narrow(full.network)
    network = whole = full.network.to("cuda" if torch.cuda.is_available() else "cpu")
    if "pruned" in ways:
        config = whole.config
        heads, feed = max(1, int(config.heads * HEADS_KEPT)), max(1, int(config.feed_width * FEED_KEPT))
        network = pruned(whole, importance_of(whole, full.learned, full.newest_from, full.live, seed), heads, feed)
    if "shared" in ways:
        network = shared(network)
    recovered = recover(network, whole, full.learned, seed)
    return Narrow(network.cpu(), recovered.steps, recovered.seconds)


def write_shrunk(full: Full, narrow: Narrow, ways: Sequence[str], wide: Path, folder: Path, threads: int) -> None:
    """Write model.onnx, items and warmup of the shrunk model into an empty folder, beside those of the full one."""
    network, ranges = narrow.network, None
    if "int8" in ways:
        network = with_fewer_neighbours(network)
        ranges = observed_ranges(network, full.learned, np.unique(full.learned.last), threads)
    graph, _ = lay(network, min(LIST_LENGTH, network.config.items), ranges, half="fp16" in ways)
    onnx.save(graph, folder / MODEL)
    shutil.copyfile(wide / ITEMS, folder / ITEMS)
    with np.load(wide / WARMUP) as warmup:
        feed = {name: warmup[name] for name in INPUTS}
    write_warmup(open_graph(folder, threads), feed, folder / WARMUP)


def receipt_of_shrunk(full: Full, narrow: Narrow, wide: Path, folder: Path, threads: int) -> dict[str, float]:
    """Measure what lies in two folders, the full model in the first."""
    before = Side(wide, full.network, full.steps, full.seconds)
    after = Side(folder, narrow.network, narrow.steps or full.steps, narrow.seconds or full.seconds)
    return receipt_of(before, after, full.events, full.places, threads)


def put_in_place(
    full: Full, narrow: Narrow, ways: Sequence[str], folder: Path, threads: int, bound: float
) -> dict[str, float]:
    """Let the shrunk model take the place of the full one that was exported into a folder; its receipt.

    Raises ModelRefused, the full one still in its place, where the shrunk one exceeds its bound (see receipt.refusal).
    """
    shrunk = folder / _SHRUNK
    shrunk.mkdir()
    try:
        write_shrunk(full, narrow, ways, folder, shrunk, threads)
        receipt = receipt_of_shrunk(full, narrow, folder, shrunk, threads)
        reason = refusal(receipt, bound, for_cpu="fp16" not in ways)
        if reason is not None:
            raise ModelRefused(f"the model shrunk by {','.join(ways)} is refused: {reason}", "shrink it less")
        for name in FILES:
            (shrunk / name).replace(folder / name)
    finally:
        shutil.rmtree(shrunk)
    say(
        f"  shrunk by {','.join(ways)}: {receipt['bytes_before'] / receipt['bytes_after']:.1f} times smaller, 64 users "
        f"in {receipt['p50_ms_64_after']:.1f} ms instead of {receipt['p50_ms_64_before']:.1f}, "
        f"NDCG@{TOP} {receipt['ndcg_change']:+.2%}"
    )
    return receipt


def shrunk_or_full(
    full: Full, narrow: Narrow, ways: Sequence[str], folder: Path, threads: int, bound: float
) -> dict[str, float]:
    """The same, but without a way, or where it is refused, the full model is what goes on, without a receipt."""
    if not ways:
        return {}
    try:
        return put_in_place(full, narrow, ways, folder, threads, bound)
    except ModelRefused as refused:
        say(f"  {refused.cause}; the full one goes on in its place")
        return {}
