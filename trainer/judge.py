"""Is the new model good enough to be served? Asked of the exported graph, on events never learned.

Test by global time: every held-back event (the newest ones) is foreseen from the user's history
just before it, ranked among all items. A hit needs the item in the first TOP places.
    hr   = share of events with a hit
    ndcg = mean of 1 / log2(rank + 1), rank from 1, 0 without a hit
A candidate is refused when
    its scores are not finite, or its lists end early (the export has compared them with PyTorch's);
    it does not beat popularity, or falls below the served model by more than the margin;
    it is slower or larger than its budget;
    it knows less than the served model: older events, or not all items that are still alive.
What is published is the graph that was judged: the held-back events are learned by the next cycle, not afterwards in
secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from schemas.errors import ModelRefused
from schemas.features import Inputs
from schemas.release import FILES
from trainer.config import DAY_MS, MIB, POPULARITY_DAYS, TOP, Gate
from trainer.export import graph_feed, open_graph, run_graph
from trainer.files import item_ids_in
from trainer.latency import latency
from trainer.progress import say
from trainer.sequences import Histories, Ints, evenly, next_items

# Judged events at most: 10 000 give a standard error of NDCG near 0.002 at the values seen here.
JUDGED_MOST = 10_000
# Histories given to the graph at once.
JUDGED_AT_ONCE = 256
# Two models are told apart only beyond chance: so many standard errors of the paired difference.
MARGIN_ERRORS = 2.0
# Users of one batch whose latency counts: a usual micro-batch of the job.
LATENCY_BATCH = 64
# A machine that was busy for a moment is not the model's fault: it is measured so often before it is refused.
LATENCY_TRIES = 3
STAYS = "the served model stays; "

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
    """A release folder, and the events as its model sees them.

    events: item_index by the items of the folder. available: bool[V+1], what it may list.
    until_ms: it has learned from earlier events alone.
    """

    folder: Path
    events: Histories
    available: NDArray[np.bool_]
    until_ms: int

    def item_ids(self) -> list[str]:
        """Item ids in index order: the first has index 1."""
        return item_ids_in(self.folder)


@dataclass
class Judgement:
    """What was measured, and every reason against the candidate, with its numbers."""

    metrics: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def refuse(self) -> None:
        """Raises ModelRefused when there is a reason to."""
        if self.reasons:
            raise ModelRefused("; ".join(self.reasons), STAYS + "the next cycle tries again with newer clicks")


def judge(new: Contender, served: Contender | None, judge_from: int, threads: int, gate: Gate) -> Judgement:
    """Judge the new model on the events since judge_from (ms), beside the served one when there is one."""
    found = Judgement()
    place = evenly(next_items(new.events, judge_from), JUDGED_MOST)
    if len(place) == 0:
        found.reasons.append("no held-back event has a history to foresee it from")
        return found
    say(f"judged on {len(place)} held-back events among {len(new.available) - 1} items")
    found.metrics["judged_events"] = float(len(place))
    try:
        _judge_lists(found, new, served, place, judge_from, threads, gate)
        _judge_cost(found, new, place, threads, gate)
    except ModelRefused as reason:  # it gives no scores to compare, or does not run at all
        found.reasons.append(reason.cause)
    if served is not None:
        found.reasons += older_knowledge(new, served)
    return found


def _judge_lists(
    found: Judgement,
    new: Contender,
    served: Contender | None,
    place: Ints,
    judge_from: int,
    threads: int,
    gate: Gate,
) -> None:
    model = foreseen_by_graph(new, place, threads)
    popularity, days = foreseen_by_popularity(new.events, place, judge_from, len(new.available) - 1)
    say(f"  new model   {model.line}")
    say(f"  popularity  {popularity.line} (last {days} days, the best of {POPULARITY_DAYS})")
    found.metrics |= {
        "ndcg": float(model.ndcg.mean()),
        "hr": float(model.hit.mean()),
        "popularity_ndcg": float(popularity.ndcg.mean()),
        "popularity_hr": float(popularity.hit.mean()),
        "popularity_days": float(days),
    }
    if model.ndcg.mean() <= popularity.ndcg.mean():
        found.reasons.append(f"the new model ({model.line}) does not beat popularity ({popularity.line})")
    if served is None:
        return
    try:
        parent = foreseen_by_graph(served, place, threads)
    except ModelRefused as broken:
        say(f"  served now  cannot be compared: {broken.cause}")
        return
    say(f"  served now  {parent.line}")
    found.metrics |= {"served_ndcg": float(parent.ndcg.mean()), "served_hr": float(parent.hit.mean())}
    found.reasons += worse_than_served(model, parent, gate.margin)


def worse_than_served(model: Judged, served: Judged, margin: float) -> list[str]:
    """The reason against a model that falls below the served one by more than the margin, a share of its NDCG."""
    difference = model.ndcg - served.ndcg
    error = float(difference.std() / np.sqrt(len(difference)))
    allowed = margin * float(served.ndcg.mean()) + MARGIN_ERRORS * error
    if difference.mean() >= -allowed:
        return []
    return [
        f"the new model ({model.line}) is worse than the served one ({served.line}) by more than {allowed:.4f}, "
        f"which is {margin:.1%} and {MARGIN_ERRORS:g} standard errors of {error:.4f}"
    ]


def older_knowledge(new: Contender, served: Contender) -> list[str]:
    """The reasons against a model that knows less than the served one."""
    reasons = []
    if new.until_ms < served.until_ms:
        reasons.append(
            f"the new model has learned until {_utc(new.until_ms)}, the served one until {_utc(served.until_ms)}"
        )
    known = set(new.item_ids())
    alive = [item for item, there in zip(served.item_ids(), served.available[1:], strict=True) if there]
    missing = [item for item in alive if item not in known]
    if missing:
        reasons.append(
            f"the new model lacks {len(missing)} of the {len(alive)} living items of the served one, {missing[0]} first"
        )
    return reasons


def _judge_cost(found: Judgement, new: Contender, place: Ints, threads: int, gate: Gate) -> None:
    size = sum((new.folder / name).stat().st_size for name in FILES) / MIB
    graph = open_graph(new.folder, threads)
    feed = graph_feed(new.events, place[:LATENCY_BATCH] - 1, new.available)
    for _ in range(LATENCY_TRIES):
        took = latency(graph, feed, LATENCY_BATCH)
        within = not gate.latency_ms or took.p99_ms <= gate.latency_ms
        if within:
            break
    provider = graph.get_providers()[0].removesuffix("ExecutionProvider")
    say(f"  {LATENCY_BATCH} users in {took.p50_ms:.1f} ms, p99 {took.p99_ms:.1f} ms on {provider}; {size:.1f} MiB")
    found.metrics |= {"latency_p50_ms": took.p50_ms, "latency_p99_ms": took.p99_ms, "size_mib": size}
    if not within:
        found.reasons.append(
            f"it takes {took.p99_ms:.1f} ms for {LATENCY_BATCH} users (p99 on {provider}), "
            f"trainer.latency_ms allows {gate.latency_ms:g}"
        )
    if gate.size_mib and size > gate.size_mib:
        found.reasons.append(f"the release has {size:.1f} MiB, trainer.size_mib allows {gate.size_mib:g}")


def foreseen_by_graph(contender: Contender, place: Ints, threads: int) -> Judged:
    """Gains of a graph on the events at these places. Raises ModelRefused when its lists cannot be used."""
    graph = open_graph(contender.folder, threads)
    target = contender.events.item_index[place]
    rank = np.full(len(place), TOP, np.int64)
    spoilt = short = 0
    for begin in range(0, len(place), JUDGED_AT_ONCE):
        at = slice(begin, begin + JUDGED_AT_ONCE)
        feed = graph_feed(contender.events, place[at] - 1, contender.available)
        index, score = _run(graph, feed)
        # -inf is how the graph masks: the end of a list that has run out of items.
        spoilt += int((np.isnan(score) | np.isposinf(score)).any(axis=1).sum())
        listed = np.isfinite(score)
        short += int((listed.sum(axis=1) < _places(feed, score.shape[1])).sum())
        found = (index[:, :TOP] == target[at, None]) & listed[:, :TOP]
        rank[at] = np.where(found.any(1), found.argmax(1), TOP)
    name = contender.folder.name.removeprefix(".building-")
    if spoilt:
        raise ModelRefused(
            f"{name} gives scores that are not finite to {spoilt} of {len(place)} judged users",
            STAYS + "look at the loss curves",
        )
    if short:
        raise ModelRefused(
            f"{name} gives {short} of {len(place)} judged users lists that end before the items do",
            STAYS + "look at the loss curves",
        )
    return _gains(rank)


def _run(graph: onnxruntime.InferenceSession, feed: Inputs) -> tuple[Ints, NDArray[np.float32]]:
    """Outputs of a graph that may be of a former trainer and ask for less. Raises ModelRefused when it does not run."""
    wanted = [value.name for value in graph.get_inputs()]
    try:
        return run_graph(graph, {name: feed[name] for name in wanted})
    except Exception as problem:  # onnxruntime raises many kinds
        raise ModelRefused(
            f"the graph does not run ({str(problem).splitlines()[0]})", STAYS + "export it again"
        ) from problem


def _places(feed: Inputs, most: int) -> Ints:
    """How long the list of each user must be: as long as lists are, or all items that the user may be shown."""
    item, available = np.sort(feed["item_index"], axis=1), feed["available"]
    first = np.ones(item.shape, np.bool_)
    first[:, 1:] = item[:, 1:] != item[:, :-1]
    seen = (first & available[item] & (item != 0)).sum(axis=1)
    places: Ints = np.minimum(available[1:].sum() - seen, most)
    return places


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


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
