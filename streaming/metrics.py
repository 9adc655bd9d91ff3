"""What an operator counts, as Flink metrics: in Flink's UI and REST, and so in Prometheus.

Names begin with the operator's word: features_events, score_users, write_rows, …
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyflink.datastream import RuntimeContext

# Upper ends of the freshness buckets in ms, about 20 % apart where it matters; the last bucket is open.
FRESHNESS_MS = (
    5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 60, 70, 80, 90, 100, 120, 140, 160, 180, 200, 225, 250,
    300, 350, 400, 500, 600, 800, 1000, 1500, 2000, 3000, 5000, 10_000, 30_000, 60_000,
)  # fmt: skip


def bucket_names() -> list[str]:
    """Metric names of the freshness buckets, in the order of their upper ends."""
    return [f"write_freshness_upto_{upper}ms" for upper in FRESHNESS_MS] + ["write_freshness_above"]


class Metrics:
    """Counters and last values of one operator; `prefix` is the operator's word."""

    def __init__(self, context: RuntimeContext, prefix: str) -> None:
        self._group = context.get_metrics_group()
        self._prefix = prefix
        self._counters: dict[str, Any] = {}
        self._values: dict[str, Any] = {}

    def declare(self, counters: Sequence[str], values: Sequence[str] = ()) -> "Metrics":
        """Register counters, and values of which the last one counts, so that they show before the first event."""
        for name in counters:
            self._counters[name] = self._group.counter(f"{self._prefix}_{name}")
        for name in values:
            # In thread mode a gauge would call Python from a thread of Flink's; a distribution keeps its value in Java.
            self._values[name] = self._group.distribution(f"{self._prefix}_{name}")
        return self

    def add(self, **counts: int) -> None:
        """Add to counters."""
        for name, count in counts.items():
            if count:
                self._counters[name].inc(int(count))

    def set(self, **values: int) -> None:
        """Set last values."""
        for name, value in values.items():
            self._values[name].update(int(value))


class Freshness:
    """Counts events by the time from their production to the acknowledgement of the row that knows them."""

    def __init__(self, context: RuntimeContext) -> None:
        group = context.get_metrics_group()
        self._buckets = [group.counter(name) for name in bucket_names()]
        self._edges = np.array(FRESHNESS_MS)

    def count(self, produced_ms: NDArray[np.int64]) -> None:
        """produced_ms: int64[N], the producers' clocks; now is the acknowledgement."""
        ages = int(time.time() * 1000) - produced_ms
        hits = np.bincount(np.searchsorted(self._edges, ages), minlength=len(self._buckets))
        for bucket in np.flatnonzero(hits).tolist():
            self._buckets[bucket].inc(int(hits[bucket]))


def percentile(counts: Sequence[int], share: float) -> float:
    """The freshness in ms that `share` of the events stay below, from the counts of all buckets in order.

    Linear inside a bucket, as a histogram's quantile in Prometheus; inf in the open bucket, nan without events.
    """
    total = sum(counts)
    if not total:
        return float("nan")
    below, lower = 0, 0.0
    for count, upper in zip(counts, (*FRESHNESS_MS, float("inf")), strict=True):
        if count and below + count >= share * total:
            return upper if upper == float("inf") else lower + (upper - lower) * (share * total - below) / count
        below, lower = below + count, upper
    return float("inf")
