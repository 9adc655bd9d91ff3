"""Half precision on a GPU beside full precision: the same lists, the same quality, how much faster.

    python -m tests.bench.gpu.fp16 SOURCE --format NAME [--history 50] [--out FILE]

SOURCE and NAME are a data set as `python -m trainer evaluate` takes it. A model is fitted on the events before the last
tenth (in time), exported in full, as a lean graph and in half precision, and all of them foresee the last tenth on the
GPU. A table last, and the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from schemas.errors import ConfigError
from schemas.release import MODEL
from trainer.config import heads_of, recipe
from trainer.evaluate.datasets import LOADERS, read
from trainer.evaluate.protocols import successive
from trainer.evaluate.shrinking import fitted
from trainer.export import export, graph_feed
from trainer.latency import latency
from trainer.lean import lay
from trainer.receipt import BATCHES, first_places, ndcg_of, overlap
from trainer.recipe import NetworkConfig
from trainer.sequences import Ints, evenly
from trainer.shrink import Full

CUDA = "CUDAExecutionProvider"
WIDTH, BLOCKS, PASSES = 128, 2, 20
FORESEEN, TOP_K = 20_000, 50


def model_of(source: Path, name: str, history: int) -> Full:
    """A model fitted on all but the last tenth of a data set."""
    events = read(source, name)
    histories = events.histories(history, repeats=False)
    config = NetworkConfig(events.vocabulary.size, WIDTH, BLOCKS, heads_of(WIDTH), history=history)
    [step] = successive(histories, 0.9)
    return fitted(config, step, recipe(PASSES, True, True, histories.history))


def graphs_of(full: Full, folder: Path) -> dict[str, Path]:
    """Files of the three graphs."""
    network, items = full.network.cpu().eval(), [f"i{n}" for n in range(full.network.config.items)]
    export(network, items, full.learned, folder, threads=4)
    files = {"full": folder / MODEL}
    for name, half in (("lean", False), ("fp16", True)):
        files[name] = folder / f"{name}.onnx"
        onnx.save(lay(network, min(TOP_K, len(items)), half=half)[0], files[name])
    return files


def opened(file: Path) -> onnxruntime.InferenceSession:
    """The graph on the GPU. Raises ConfigError where it would run elsewhere."""
    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph = onnxruntime.InferenceSession(str(file), options, providers=[CUDA, "CPUExecutionProvider"])
    if graph.get_providers()[0] != CUDA:
        raise ConfigError(f"{file.name} runs on {graph.get_providers()[0]}", "run this where ONNX Runtime has a GPU")
    return graph


def measured(full: Full, files: dict[str, Path]) -> dict[str, dict[str, float]]:
    """By graph: ndcg, overlap with full precision, bytes, and ms of batches."""
    places = evenly(full.places, FORESEEN)
    target = full.events.item_index[places]
    found: dict[str, dict[str, float]] = {}
    reference: Ints | None = None
    for name, file in files.items():
        graph = opened(file)
        lists = first_places(graph, full.events, places, full.network.config.items)
        reference = lists if reference is None else reference
        row = {
            "ndcg": ndcg_of(lists, target),
            "top10_overlap": overlap(reference, lists),
            "bytes": float(file.stat().st_size),
        }
        feed = graph_feed(full.events, places[: BATCHES[-1]] - 1, np.ones(full.network.config.items + 1, np.bool_))
        for size in BATCHES:
            took = latency(graph, feed, size)
            row |= {f"p50_ms_{size}": took.p50_ms, f"p99_ms_{size}": took.p99_ms}
        found[name] = row
    return found


def main() -> None:
    """Measure a data set; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--format", required=True, choices=sorted(LOADERS))
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("fp16.json"))
    asked = parser.parse_args()
    full = model_of(asked.source, asked.format, asked.history)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(full, graphs_of(full, Path(folder)))
    content = {
        "device": torch.cuda.get_device_name(),
        "date": time.strftime("%Y-%m-%d"),
        "onnxruntime": onnxruntime.__version__,
        "width": WIDTH,
        "passes": PASSES,
        "results": {asked.format: rows},
    }
    asked.out.write_text(json.dumps(content, indent=1) + "\n")
    times = "".join(f"{f'p50 / p99 × {size}':>20}" for size in BATCHES)
    print(f"{'data':14}{'graph':7}{'NDCG@10':>9}{'change':>9}{'kept':>8}{'MiB':>8}{times}")
    for graph, row in rows.items():
        change = row["ndcg"] / rows["full"]["ndcg"] - 1
        times = "".join(f"{row[f'p50_ms_{size}']:11.3f} / {row[f'p99_ms_{size}']:6.3f}" for size in BATCHES)
        print(
            f"{asked.format:14}{graph:7}{row['ndcg']:9.4f}{change:+9.2%}{row['top10_overlap']:8.2%}"
            f"{row['bytes'] / 2**20:8.2f}{times}"
        )


if __name__ == "__main__":
    main()
