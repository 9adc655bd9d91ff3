"""Is the new model good enough to be served? Asked of the exported graph, on events never learned.

Test by global time: every held-back event (the newest ones) is foreseen from the user's history just
before it, ranked among all items. A hit needs the item in the first TOP places.
    hr   = share of events with a hit
    ndcg = mean of 1 / log2(rank + 1), rank from 1, 0 without a hit
The model must beat popularity, and must not fall below the served model. What is published is the
graph that was judged: the held-back events are learned by the next cycle, not afterwards in secret.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelRefused
from trainer.export import graph_feed, open_graph, run_graph
from trainer.sequences import Histories, Ints, evenly, next_items

TOP = 10
# Judged events at most: 10 000 give a standard error of NDCG near 0.002 at the values seen here.
JUDGED_MOST = 10_000
# Histories given to the graph at once.
JUDGED_AT_ONCE = 256
# Popularity is counted over these last days before the held-back events; the best one competes.
POPULARITY_DAYS = (1, 3, 7, 14, 30, 90, 365)
DAY_MS = 24 * 3600 * 1000
# The served model may be better by this share of its NDCG and by chance (standard errors of the
# paired difference) before the new one is refused: newer knowledge is worth a little.
MARGIN_SHARE, MARGIN_ERRORS = 0.02, 2.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """Gains of one contender: ndcg, hit: float64[N], one per judged event."""

    ndcg: Floats
    hit: Floats

    @property
    def line(self) -> str:
        """Both means, to print."""
        return f"NDCG@{TOP} {self.ndcg.mean():.4f}, HR@{TOP} {self.hit.mean():.4f}"


def judge(
    folder: Path,
    served: tuple[Path, int] | None,
    histories: Histories,
    judge_from: int,
    item_count: int,
    threads: int,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Judge the graph in `folder` on the events since judge_from (ms); returns the metrics.

    served: (release folder, number of items) of the served model, whose indices are the first ones
    of the new model's. Raises ModelRefused, with the numbers, when the new model must not serve.
    """
    place = evenly(next_items(histories, judge_from), JUDGED_MOST)
    if len(place) == 0:
        raise ModelRefused("no held-back event has a history to foresee it from", "collect more clicks")
    target = histories.item_index[place]
    model = _ask(folder, histories, place, item_count, threads)
    popularity, days = _popularity(histories, place, judge_from, item_count)
    say(f"judged on {len(place)} held-back events, {item_count} items ranked")
    say(f"  model       {model.line}")
    say(f"  popularity  {popularity.line} (last {days} days)")
    metrics = {
        "judged_events": float(len(place)),
        "ndcg": float(model.ndcg.mean()),
        "hr": float(model.hit.mean()),
        "popularity_ndcg": float(popularity.ndcg.mean()),
        "popularity_hr": float(popularity.hit.mean()),
        "popularity_days": float(days),
        "never_sold_targets": float((target > 0).mean()),
    }
    if metrics["ndcg"] <= metrics["popularity_ndcg"]:
        raise ModelRefused(
            f"the new model ({model.line}) does not beat popularity ({popularity.line})",
            "the served model stays; collect more clicks",
        )
    if served is not None:
        parent = _ask(*_with(served), histories=histories, place=place, threads=threads)
        say(f"  served      {parent.line}")
        metrics |= {"served_ndcg": float(parent.ndcg.mean()), "served_hr": float(parent.hit.mean())}
        _refuse_if_worse(model, parent)
    return metrics
