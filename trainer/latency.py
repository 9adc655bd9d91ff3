"""How long a graph takes for a batch of users, on this machine and its provider."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import onnxruntime

from schemas.features import Inputs

# The first runs bring memory and kernels to size.
WARM_RUNS = 3
# Enough runs for a 99th percentile, unless they take too long; a slow graph is known after fewer.
RUNS, LEAST_RUNS, SECONDS = 100, 10, 2.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one run: the middle one, and what 99 of 100 stay below."""

    p50_ms: float
    p99_ms: float


def latency(graph: onnxruntime.InferenceSession, feed: Inputs, batch: int) -> Latency:
    """Run a graph on batches of so many users, who are those of the feed, over and over.

    feed: inputs by name, at least one row; `available` has no rows and stays as it is.
    """
    wanted = [value.name for value in graph.get_inputs()]
    rows = np.arange(batch) % len(feed["item_index"])
    fed = {name: feed[name] if name == "available" else feed[name][rows] for name in wanted}
    for _ in range(WARM_RUNS):
        graph.run(None, fed)
    took: list[float] = []
    began = time.perf_counter()
    while len(took) < LEAST_RUNS or (len(took) < RUNS and time.perf_counter() - began < SECONDS):
        start = time.perf_counter()
        graph.run(None, fed)
        took.append((time.perf_counter() - start) * 1000)
    return Latency(float(np.percentile(took, 50)), float(np.percentile(took, 99)))
