"""The receipt of a shrunk model: what it saves and what that costs, each measured beside the model it came from.

parameters_…        numbers that a fit may move, shared ones once; before / after is the compression rate d / d'
bytes_…             of model.onnx
session_bytes_…     by how much a fresh process grows when it opens the graph and scores a first batch of 64
p50_ms_B_…, p99_…   of batches of B real users on the CPU, B = 1, 64, 1024
ndcg_…              NDCG@10 on the same events, which neither has learned; ndcg_change is after / before - 1
top10_overlap       share of the first ten items of the model before that are among the first ten after
learn_steps_…, step_seconds_…   of the fit of a cycle: T, t for the full model, T', t' for the shrunk one
optimisation_ratio  T · t / (T' · t'): the learning of a cycle of the full model over that of the shrunk one, which
has all of the full one's when it is made from it without a fit of its own (1 then)
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

from schemas.errors import ModelRefused
from schemas.release import MODEL
from trainer.config import MIB, TOP
from trainer.export import graph_feed, open_graph, run_graph
from trainer.latency import latency
from trainer.network import Network
from trainer.prune import parameters
from trainer.sequences import Histories, Ints, evenly

BATCHES = (1, 64, 1024)
# Events that both models foresee at most, and how many at once.
FORESEEN_MOST, AT_ONCE = 10_000, 256
# What a batch is slower by chance on a machine that does other things, too.
CHANCE = 1.1

_SESSION = """
import sys, numpy, onnxruntime
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
feed = dict(numpy.load(sys.argv[2]))
before = resident()
graph = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
graph.run(None, {value.name: feed[value.name] for value in graph.get_inputs()})
print(resident() - before)
"""


@dataclass(frozen=True)
class Side:
    """A model before or after: its folder with model.onnx and warmup, its network, the steps and seconds of its fit."""

    folder: Path
    network: Network
    steps: float
    seconds: float


def receipt_of(before: Side, after: Side, events: Histories, places: Ints, threads: int) -> dict[str, float]:
    """Measure both. places: events of the histories that neither has learned; see the module for the names."""
    places = evenly(places, FORESEEN_MOST)
    if len(places) == 0:
        raise ModelRefused("no event is left to compare the shrunk model on", "collect more clicks")
    found: dict[str, float] = {}
    lists: list[Ints] = []
    for when, side in (("before", before), ("after", after)):
        graph = open_graph(side.folder, threads)
        lists.append(first_places(graph, events, places, side.network.config.items))
        found |= {
            f"parameters_{when}": float(parameters(side.network)),
            f"bytes_{when}": float((side.folder / MODEL).stat().st_size),
            f"session_bytes_{when}": session_bytes(side.folder),
            f"ndcg_{when}": ndcg_of(lists[-1], events.item_index[places]),
            f"learn_steps_{when}": side.steps,
            f"step_seconds_{when}": side.seconds / max(side.steps, 1.0),
        } | _latencies(graph, events, places, when)
    found["judged_events"] = float(len(places))
    found["ndcg_change"] = found["ndcg_after"] / found["ndcg_before"] - 1 if found["ndcg_before"] else 0.0
    found["top10_overlap"] = overlap(*lists)
    found["optimisation_ratio"] = before.seconds / after.seconds if after.seconds else 1.0
    return found


def refusal(receipt: Mapping[str, float], bound: float, for_cpu: bool) -> str | None:
    """Why a shrunk model may not stand for the full one, with numbers; None when it may.

    bound: the share of its NDCG that it may lose. for_cpu: it must not be slower here than the full one.
    """
    reasons = []
    if receipt["ndcg_change"] < -bound:
        reasons.append(
            f"its NDCG@{TOP} changes by {receipt['ndcg_change']:+.2%} ({receipt['ndcg_before']:.4f} → "
            f"{receipt['ndcg_after']:.4f} on {receipt['judged_events']:.0f} events), "
            f"trainer.shrink_loss allows {bound:.2%}"
        )
    slower = receipt["p50_ms_64_after"] > CHANCE * receipt["p50_ms_64_before"]
    if for_cpu and slower:
        reasons.append(
            f"it takes {receipt['p50_ms_64_after']:.1f} ms for 64 users, "
            f"the full model {receipt['p50_ms_64_before']:.1f}"
        )
    return "; ".join(reasons) or None


def overlap(before: Ints, after: Ints) -> float:
    """Share of the items of lists int64[E, K] that the other lists of the same rows hold, too; 0 is no item."""
    return float((before[:, :, None] == after[:, None, :]).any(axis=2)[before > 0].mean())


def session_bytes(folder: Path) -> float:
    """By how much a fresh process grows when it opens the graph of a folder and answers its warm-up."""
    command = [sys.executable, "-c", _SESSION, str(folder / MODEL), str(folder / "warmup")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModelRefused(f"the graph in {folder} does not run alone ({done.stderr[-200:]})", "export it again")
    return float(done.stdout)


def table_of(receipts: Mapping[str, Mapping[str, float]], title: str) -> Table:
    """One column for the full model and one for each receipt."""
    table = Table(box=SIMPLE, title=title, title_justify="left")
    for name in ("", "full", *receipts):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    rows: list[tuple[str, str, float, str]] = [
        ("parameters, M", "parameters", 1e-6, ".3f"),
        ("model.onnx, MiB", "bytes", 1 / MIB, ".2f"),
        ("session, MiB", "session_bytes", 1 / MIB, ".1f"),
        *((f"p50 of {size} users, ms", f"p50_ms_{size}", 1.0, ".2f") for size in BATCHES),
        *((f"p99 of {size} users, ms", f"p99_ms_{size}", 1.0, ".2f") for size in BATCHES),
    ]
    each = list(receipts.values())
    for title_of_row, name, unit, form in rows:
        cells = [format(each[0][f"{name}_before"] * unit, form)]
        for receipt in each:
            before, after = receipt[f"{name}_before"], receipt[f"{name}_after"]
            cells.append(f"{format(after * unit, form)} ({before / max(after, 1e-9):.2f}×)")
        table.add_row(title_of_row, *cells)
    table.add_row(
        f"NDCG@{TOP}",
        f"{each[0]['ndcg_before']:.4f}",
        *(f"{receipt['ndcg_after']:.4f} ({receipt['ndcg_change']:+.2%})" for receipt in each),
    )
    table.add_row(f"top-{TOP} kept", "", *(f"{receipt['top10_overlap']:.2%}" for receipt in each))
    table.add_row("T·t / T'·t'", "", *(f"{receipt['optimisation_ratio']:.2f}" for receipt in each))
    table.caption = "(…×): how many times less than the full model"
    return table


def _latencies(graph: onnxruntime.InferenceSession, events: Histories, places: Ints, when: str) -> dict[str, float]:
    available = np.ones(graph.get_inputs()[-1].shape[0], np.bool_)
    feed = graph_feed(events, evenly(places, BATCHES[-1]) - 1, available)
    found: dict[str, float] = {}
    for size in BATCHES:
        took = latency(graph, feed, size)
        found |= {f"p50_ms_{size}_{when}": took.p50_ms, f"p99_ms_{size}_{when}": took.p99_ms}
    return found


def first_places(graph: onnxruntime.InferenceSession, events: Histories, places: Ints, items: int) -> Ints:
    """The first TOP items int64[E, TOP] before each event, 0 where the list has ended."""
    available = np.ones(items + 1, np.bool_)
    parts = []
    for begin in range(0, len(places), AT_ONCE):
        index, score = run_graph(graph, graph_feed(events, places[begin : begin + AT_ONCE] - 1, available))
        parts.append(np.where(np.isfinite(score), index, 0)[:, :TOP])
    return np.concatenate(parts)


def ndcg_of(lists: Ints, target: Ints) -> float:
    """NDCG of lists int64[E, K] with one true item each, int64[E]."""
    gain: NDArray[np.float64] = (lists == target[:, None]) / np.log2(np.arange(lists.shape[1]) + 2.0)
    return float(gain.sum(axis=1).mean())
