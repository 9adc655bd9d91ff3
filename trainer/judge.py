"""Is the new model good enough to be served? Asked of the exported graph, on events never learned.

Test by global time: every held-back event (the newest ones) is foreseen from the user's history
just before it, ranked among all items. A hit needs the item in the first TOP places.
    hr   = share of events with a hit
    ndcg = mean of 1 / log2(rank + 1), rank from 1, 0 without a hit
The model must beat popularity, and must not fall below the served model. What is published is the
graph that was judged: the held-back events are learned by the next cycle, not afterwards in secret.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelRefused
from trainer.export import graph_feed, open_graph, run_graph
from trainer.progress import say
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


@dataclass(frozen=True)
class Contender:
    """A release folder and how many items, the first ones of the index order, it knows."""

    folder: Path
    item_count: int


def judge(
    new: Contender,
    served: Contender | None,
    histories: Histories,
    judge_from: int,
    threads: int,
) -> dict[str, float]:
    """Judge the new model on the events since judge_from (ms); returns the metrics.

    Raises ModelRefused, with the numbers, when it must not serve.
    """
    place = evenly(next_items(histories, judge_from), JUDGED_MOST)
    if len(place) == 0:
        raise ModelRefused("no held-back event has a history to foresee it from", "collect more")
    model = foreseen_by_graph(new, histories, place, threads)
    popularity, days = foreseen_by_popularity(histories, place, judge_from, new.item_count)
    say(f"judged on {len(place)} held-back events among {new.item_count} items")
    say(f"  new model   {model.line}")
    say(f"  popularity  {popularity.line} (last {days} days, the best of {POPULARITY_DAYS})")
    metrics = {
        "judged_events": float(len(place)),
        "ndcg": float(model.ndcg.mean()),
        "hr": float(model.hit.mean()),
        "popularity_ndcg": float(popularity.ndcg.mean()),
        "popularity_hr": float(popularity.hit.mean()),
        "popularity_days": float(days),
    }
    if metrics["ndcg"] <= metrics["popularity_ndcg"]:
        raise ModelRefused(
            f"the new model ({model.line}) does not beat popularity ({popularity.line})",
            "the served model stays; collect more clicks",
        )
    if served is not None:
        parent = foreseen_by_graph(served, histories, place, threads)
        say(f"  served now  {parent.line}")
        metrics["served_ndcg"] = float(parent.ndcg.mean())
        metrics["served_hr"] = float(parent.hit.mean())
        refuse_if_worse(model, parent)
    return metrics


def refuse_if_worse(model: Judged, served: Judged) -> None:
    """Raises ModelRefused when the model falls below the served one by more than the margin."""
    difference = model.ndcg - served.ndcg
    error = float(difference.std() / np.sqrt(len(difference)))
    margin = MARGIN_SHARE * float(served.ndcg.mean()) + MARGIN_ERRORS * error
    if difference.mean() < -margin:
        raise ModelRefused(
            f"the new model ({model.line}) is worse than the served one ({served.line}) "
            f"by more than the margin of {margin:.4f}",
            "the served model stays; the next cycle tries again with newer clicks",
        )


def foreseen_by_graph(contender: Contender, histories: Histories, place: Ints, threads: int) -> Judged:
    """Gains of a graph on the events at these places. Raises ModelRefused on scores not finite."""
    graph = open_graph(contender.folder, threads)
    # Items that came after this model are unknown to it, in histories and as targets.
    known = histories.item_index <= contender.item_count
    own = replace(histories, item_index=np.where(known, histories.item_index, 0))
    available = np.ones(contender.item_count + 1, np.bool_)
    rank = np.full(len(place), TOP, np.int64)
    for begin in range(0, len(place), JUDGED_AT_ONCE):
        at = place[begin : begin + JUDGED_AT_ONCE]
        index, score = run_graph(graph, graph_feed(own, at - 1, available))
        # -inf is how the graph masks: the end of a list that has run out of items, all of it for who has had them all.
        if np.isnan(score).any() or np.isposinf(score).any():
            raise ModelRefused(
                f"{contender.folder.name} gives scores that are not finite",
                "the served model stays; look at the loss curves",
            )
        found = (index[:, :TOP] == histories.item_index[at][:, None]) & np.isfinite(score[:, :TOP])
        rank[begin : begin + JUDGED_AT_ONCE] = np.where(found.any(1), found.argmax(1), TOP)
    return _gains(rank)


def foreseen_by_popularity(histories: Histories, place: Ints, judge_from: int, item_count: int) -> tuple[Judged, int]:
    """Gains of the best windowed popularity, and its window in days.

    Counted before the held-back events only; items in a user's history are left out of the list,
    as for the model.
    """
    seen = np.sort(histories.seen(place - 1), axis=1)
    repeated = np.zeros_like(seen, np.bool_)
    repeated[:, 1:] = seen[:, 1:] == seen[:, :-1]
    tried: list[tuple[Judged, int]] = []
    for days in POPULARITY_DAYS:
        counted = (histories.event_time < judge_from) & (histories.event_time >= judge_from - days * DAY_MS)
        counts = np.bincount(histories.item_index[counted], minlength=item_count + 1)
        counts[0] = -1
        position = np.empty(item_count + 1, np.int64)
        position[np.argsort(-counts, kind="stable")] = np.arange(item_count + 1)
        of_target = position[histories.item_index[place]][:, None]
        above = (position[seen] < of_target) & (seen > 0) & ~repeated
        tried.append((_gains(of_target[:, 0] - above.sum(axis=1)), days))
    return max(tried, key=lambda each: float(each[0].ndcg.mean()))


def _gains(rank: Ints) -> Judged:
    """Gains of int64[N] ranks from 0."""
    hit = rank < TOP
    return Judged(np.where(hit, 1.0 / np.log2(rank + 2.0), 0.0), hit.astype(np.float64))
