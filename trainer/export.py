"""Network → release files: one ONNX graph, the items in index order, and a warm-up with answers.

The graph is not trusted: before it goes anywhere it must give, on real users and at several batch
sizes, what the network gives.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from schemas.errors import ModelRefused
from schemas.features import Inputs
from schemas.recommendation import LIST_LENGTH
from schemas.release import ITEMS, MODEL, OUTPUT_INDEX, OUTPUT_SCORE, WARMUP
from trainer.network import Network, Scorer, tensors
from trainer.sequences import Histories, Ints, evenly

# The names in the order of Scorer.forward; the manifest lists them for whoever feeds the graph.
INPUTS = ("item_index", "action", "gap", "age", "counters", "available")
OPSET = 18
# Users that the graph is compared on, and the batch sizes: one, a usual micro-batch, all at once.
PARITY_USERS = 256
PARITY_BATCHES = (1, 64, PARITY_USERS)
# Two float32 implementations add in different orders: near-equal scores may swap places.
LEAST_OVERLAP = 0.995
MOST_SCORE_DIFFERENCE = 1e-3
# Enough to bring every kernel and the memory arena to the size of a usual micro-batch.
WARMUP_USERS = 64


def export(
    network: Network, item_ids: Sequence[str], histories: Histories, folder: Path, threads: int
) -> dict[str, float]:
    """Write model.onnx, items and warmup into a folder and compare the graph with the network.

    Returns the comparison: parity_overlap (share of equal top_index) and parity_score (largest
    difference of a score). Raises ModelRefused when they disagree.
    """
    scorer = Scorer(network.cpu().eval(), min(LIST_LENGTH, len(item_ids))).eval()
    users = evenly(np.unique(histories.last), PARITY_USERS)
    if len(users) == 0:
        raise ModelRefused("no user to compare the exported graph on", "collect clicks first")
    feed = graph_feed(histories, users, np.ones(len(item_ids) + 1, np.bool_))
    _write_graph(scorer, feed, folder / MODEL)
    (folder / ITEMS).write_text("".join(f"{item_id}\n" for item_id in item_ids), encoding="utf-8")
    graph = open_graph(folder, threads)
    write_warmup(graph, first_rows(feed, slice(0, WARMUP_USERS)), folder / WARMUP)
    return compare(graph, scorer, feed)


def open_graph(folder: Path, threads: int) -> onnxruntime.InferenceSession:
    """The graph of a release folder on the CPU. Raises ModelRefused when it does not load."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # onnxruntime raises many kinds, all saying "cannot load"
        raise ModelRefused(
            f"{folder / MODEL} does not load ({str(problem).splitlines()[0]})", "export it again"
        ) from problem


def graph_feed(histories: Histories, newest: Ints, available: NDArray[np.bool_]) -> Inputs:
    """What the graph is fed for the windows with these newest events."""
    return {**histories.inputs(newest), "available": available}


def run_graph(graph: onnxruntime.InferenceSession, feed: Inputs) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """top_index int64[B, K] and top_score float32[B, K]."""
    index, score = graph.run([OUTPUT_INDEX, OUTPUT_SCORE], feed)
    return index, score


def compare(graph: onnxruntime.InferenceSession, scorer: Scorer, feed: Inputs) -> dict[str, float]:
    """Run graph and network on the same users. Raises ModelRefused when they disagree."""
    overlap, difference = 1.0, 0.0
    for size in PARITY_BATCHES:
        part = first_rows(feed, slice(0, size))
        index, score = run_graph(graph, part)
        with torch.no_grad():
            expected_index, expected_score = (output.numpy() for output in scorer(*tensors(part).values()))
        if not np.array_equal(np.isfinite(score), np.isfinite(expected_score)):
            raise ModelRefused(
                f"at batch size {size} the exported graph masks other items than the network",
                "the export is broken: report it with the versions of torch and onnx",
            )
        finite = np.isfinite(score)
        overlap = min(overlap, _overlap(index, expected_index, finite))
        difference = max(difference, float(np.abs(score[finite] - expected_score[finite]).max(initial=0)))
    if overlap < LEAST_OVERLAP or difference > MOST_SCORE_DIFFERENCE:
        raise ModelRefused(
            f"the exported graph shares {overlap:.2%} of the network's lists and differs by "
            f"{difference:.2g} in score (wanted: {LEAST_OVERLAP:.1%}, {MOST_SCORE_DIFFERENCE:.0e})",
            "the export is broken: report it with the versions of torch and onnx",
        )
    return {"parity_overlap": overlap, "parity_score": difference}


def _write_graph(scorer: Scorer, feed: Inputs, target: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=2**20)
    shapes = {name: None if name == "available" else {0: batch} for name in INPUTS}
    with _quiet():
        program = torch.onnx.export(
            scorer,
            kwargs=tensors(feed),
            input_names=INPUTS,
            output_names=(OUTPUT_INDEX, OUTPUT_SCORE),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ModelRefused("torch exported no graph", "use a torch whose exporter is dynamo")
    program.save(target, external_data=False)
    try:
        onnx.checker.check_model(str(target), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as problem:
        raise ModelRefused(
            f"the exported graph is not valid ONNX ({str(problem).splitlines()[0]})",
            "the export is broken: report it with the versions of torch and onnx",
        ) from problem


def write_warmup(graph: onnxruntime.InferenceSession, feed: Inputs, target: Path) -> None:
    index, score = run_graph(graph, feed)
    arrays: dict[str, Any] = {**feed, OUTPUT_INDEX: index, OUTPUT_SCORE: score}
    # Through a file handle: given a name, numpy would add .npz to it.
    with target.open("wb") as file:
        np.savez(file, **arrays)


def first_rows(feed: Inputs, rows: slice) -> Inputs:
    return {name: v if name == "available" else v[rows] for name, v in feed.items()}


def _overlap(index: NDArray[np.int64], expected: NDArray[np.int64], shown: NDArray[np.bool_]) -> float:
    """Share of expected items that are in the list of the same row, wherever in it.

    shown: bool[B, K], where both lists hold an item: behind them are masked ones, in any order.
    """
    equal = (index[:, :, None] == expected[:, None, :]) & shown[:, :, None]
    return float(equal.any(axis=1)[shown].mean()) if shown.any() else 1.0


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter remarks on optional packages and its own internals; none of it is about us."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
