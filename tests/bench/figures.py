"""The arithmetic of the suite: percentiles, spreads, ratios, gaps. No I/O, tested in tests/unit/bench."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

# So many measurements have quartiles worth the name.
MANY = 8
# A queue of less than this may be a hiccup of the machine.
BEHIND_MS = 500.0
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """What repeated measurements say: their median, the range from low to high, and how many there were.

    The range is from the least to the greatest of a few, between the quartiles of MANY and more: on a shared machine
    the extremes of many tell of the neighbours.
    """

    median: float
    low: float
    high: float
    count: int

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError without values."""
    if not values:
        raise ValueError("no measurement to summarise")
    low, high = np.quantile(values, (0.25, 0.75)) if len(values) >= MANY else (min(values), max(values))
    return Spread(float(np.median(values)), float(low), float(high), len(values))


def ratio(own: Sequence[float], peer: Sequence[float]) -> Spread:
    """Own ÷ peer: of the medians, with the range that the ends of both ranges give.

    Raises ValueError where a peer's measurement is not above zero.
    """
    if min(peer, default=0.0) <= 0.0:
        raise ValueError(f"nothing can be divided by {min(peer, default=0.0)}")
    a, b = spread(own), spread(peer)
    return Spread(a.median / b.median, a.low / b.high, a.high / b.low, min(a.count, b.count))


@dataclass(frozen=True)
class Percentiles:
    """Of ages in ms. A percentile is an age that really occurred: the least that so large a share do not exceed."""

    p50: float
    p95: float
    p99: float
    max: float
    count: int

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def percentiles(ages_ms: Floats) -> Percentiles:
    """Raises ValueError without ages."""
    if not len(ages_ms):
        raise ValueError("no event was acknowledged in the time that counts")
    ordered = np.sort(ages_ms)
    p50, p95, p99 = (float(ordered[max(0, math.ceil(share * len(ordered)) - 1)]) for share in (0.5, 0.95, 0.99))
    return Percentiles(p50, p95, p99, float(ordered[-1]), len(ordered))


def held(ages_ms: Floats) -> bool:
    """Whether a system kept up: ages, in the order of the events, do not end far above where they began.

    Far: the median of the last fifth is above BEHIND_MS and above twice that of the first fifth.
    """
    part = max(1, len(ages_ms) // 5)
    first, last = float(np.median(ages_ms[:part])), float(np.median(ages_ms[-part:]))
    return last <= max(BEHIND_MS, 2 * first)


def longest_gaps(moments: Floats, windows: Sequence[tuple[float, float]]) -> list[float]:
    """The longest time without a moment in each window (from, until); where a window has none, all of it.

    moments: rising, in the unit of the windows and of the result. A gap that reaches over a window's edge counts only
    as far as it lies inside.
    """
    gaps = []
    for start, end in windows:
        inside = moments[np.searchsorted(moments, start) : np.searchsorted(moments, end)]
        gaps.append(float(np.diff(np.concatenate(([start], inside, [end]))).max()))
    return gaps


def per_unit(seconds: Sequence[float], units: int) -> Spread:
    """Microseconds per unit of a timed call that handled so many units at once."""
    return spread([1e6 * s / units for s in seconds])
