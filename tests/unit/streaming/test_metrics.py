"""Freshness read back from buckets is what numpy says of the ages themselves."""

import math
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from streaming.metrics import FRESHNESS_MS, Freshness, Metrics, bucket_names, percentile

EDGES = np.array([0, *FRESHNESS_MS, np.inf])


class Counted:
    """A metric group of plain Python: names and what they stand at."""

    def __init__(self) -> None:
        self.standing: dict[str, int] = {}

    def get_metrics_group(self) -> "Counted":
        return self

    def counter(self, name: str) -> Any:
        self.standing[name] = 0
        return _Handle(self.standing, name)

    distribution = counter


class _Handle:
    def __init__(self, standing: dict[str, int], name: str) -> None:
        self._standing, self._name = standing, name

    def inc(self, count: int) -> None:
        self._standing[self._name] += count

    def update(self, value: int) -> None:
        self._standing[self._name] = value


def counts_of(ages: Any) -> list[int]:
    return [int(((ages > low) & (ages <= high)).sum()) for low, high in pairwise(EDGES)]


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("scale", [3.0, 40.0, 300.0, 4000.0])
def test_a_percentile_lies_in_numpys_bucket(share: float, scale: float) -> None:
    ages = np.random.default_rng(7).gamma(2.0, scale, 5000) + 1e-9
    got = percentile(counts_of(ages), share)
    exact = float(np.quantile(ages, share, method="inverted_cdf"))
    bucket = int(np.searchsorted(EDGES, exact))
    assert EDGES[bucket - 1] <= got <= EDGES[bucket]


def test_inside_a_bucket_the_percentile_is_linear() -> None:
    counts = [0] * (len(FRESHNESS_MS) + 1)
    counts[FRESHNESS_MS.index(60)] = 10
    assert [percentile(counts, share) for share in (0.1, 0.5, 1.0)] == [51.0, 55.0, 60.0]
    counts[0] = 10
    assert [percentile(counts, share) for share in (0.25, 0.5, 0.75)] == [2.5, 5.0, 55.0]


def test_shares_at_the_ends() -> None:
    counts = [0] * (len(FRESHNESS_MS) + 1)
    counts[3] = 4
    assert percentile(counts, 0.0) == 15.0
    assert percentile(counts, 1.0) == 20.0
    counts[-1] = 1
    assert percentile(counts, 1.0) == math.inf
    assert math.isnan(percentile([0] * len(counts), 0.5))


def test_freshness_counts_every_event_in_its_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    group = Counted()
    # A producer's clock may run ahead: such an event is as fresh as can be.
    ages = np.array([-50, 0, 5, 6, 60_000, 60_001, 999_999, 45])
    Freshness(group).count(1_000_000 - ages)
    assert list(group.standing) == bucket_names()
    assert {name: count for name, count in group.standing.items() if count} == {
        "write_freshness_upto_5ms": 3,
        "write_freshness_upto_10ms": 1,
        "write_freshness_upto_45ms": 1,
        "write_freshness_upto_60000ms": 1,
        "write_freshness_above": 2,
    }


def test_metrics_begin_with_the_operators_word_and_show_before_the_first_event() -> None:
    group = Counted()
    counted = Metrics(group, "score").declare(["users", "swaps"], ["model_items"])
    assert group.standing == {"score_users": 0, "score_swaps": 0, "score_model_items": 0}
    counted.add(users=3)
    counted.add(users=2, swaps=0)
    counted.set(model_items=7)
    counted.set(model_items=5)
    assert group.standing == {"score_users": 5, "score_swaps": 0, "score_model_items": 5}
