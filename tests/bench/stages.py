"""What each stage costs on one core: µs per event and per row, alone, at several batch sizes.

    python -m tests.bench.stages                 # under a minute; starts a Cassandra of its own for `write`
    python -m tests.bench.stages --no-write      # the other stages alone

The stages are the job's own operators, called as Flink calls them, with users' states in a dict: what RocksDB adds is
in `backlog` and `growth`. Peers, in turn with what they are compared with: ONNX Runtime alone on the same inputs, and
the raw driver writing the same rows. Batches of one size differ from each other, so nothing is answered by a cache of
results; the least batch is what a quiet moment gives, the largest what a backlog gives.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import typer
from pyflink.common import Row

from deploy.local.config import load_local_settings
from deploy.local.stack import Stack
from schemas.click import decode_clicks
from schemas.errors import run_command
from schemas.features import model_inputs
from schemas.release import OUTPUT_INDEX, OUTPUT_SCORE
from schemas.user_state import history, load_states
from streaming.config import Settings, StreamingSection
from streaming.control import Announced
from streaming.features import Features, Updated
from streaming.model import Model, load, scorer_threads
from streaming.rank import Fallback, rank
from streaming.score import Rows, Score
from streaming.trending import Trending
from streaming.wire import insert_values, split_values
from streaming.write import WriteRows
from tests.bench.figures import Spread, per_unit, ratio
from tests.bench.peers.driver import RawDriver
from tests.bench.report import Run, show
from tests.bench.standin import Context, Punctual
from tests.bench.world import Events, Shop, announcement, make_release

SIZES = (1, 10, 100, 1000)
# So many calls of each size are timed: enough for a median, few enough for a minute in all.
CALLS = {1: 100, 10: 60, 100: 30, 1000: 15}
CALLS_QUICK = {1: 40, 10: 30, 100: 15, 1000: 8}
# Users meet again and again, and come with histories of 40 events in the mean.
USERS, PAST_EVENTS = 2_000, 80_000
TTL_S = 90 * 24 * 3600
PROVIDERS = ["CPUExecutionProvider"]
# Row, unit, what it is divided by.
STAGES = ("decode", "features", "score", "score: inputs", "score: graph", "score: encode", "hand-over", "write")
PEERS = {"score: graph": "onnxruntime alone", "write": "raw driver"}

Timings = dict[str, dict[int, list[float]]]


class Bench:
    """The operators, opened and warm, and the times they took: stage → batch size → seconds."""

    def __init__(self, settings: Settings, release_folder: Path) -> None:
        self.settings = settings
        self.shop = Shop(7, users=USERS)
        self.times: Timings = defaultdict(lambda: defaultdict(list))
        message = announcement(make_release(release_folder, "20260101-000000"))
        self.context = Context()
        self.features = Features(settings)
        self.score = Score(settings)
        with patch("streaming.features.Lag", Punctual):
            for operator in (self.features, self.score):
                operator.open(self.context)
        self.model: Model = load(message, PROVIDERS, scorer_threads(settings.streaming.scorer_threads, 1))
        self._serve(Announced(message, ("model-releases", 0, 0), b"", b""))
        past = self.shop.events(PAST_EVENTS)
        for start in range(0, len(past), 5_000):
            self._updated(past, slice(start, start + 5_000))

    def time(self, stage: str, size: int, call: Callable[[], Any]) -> Any:
        """Time one call; returns what it returned."""
        started = time.perf_counter()
        result = call()
        self.times[stage][size].append(time.perf_counter() - started)
        return result

    def measure(self, size: int, calls: int, write: WriteRows | None, raw: RawDriver | None) -> None:
        """Every stage on `calls` batches of `size` events; peers in turn before and after what they stand beside."""
        events = self.shop.events(size * (calls + 1))
        for call in range(calls + 1):
            self._one(events, slice(call * size, (call + 1) * size), size, call % 2 == 0, write, raw)
        for by_size in self.times.values():  # the first call of a size is its warm-up
            by_size[size][:] = by_size[size][-calls:]

    def _one(
        self, events: Events, part: slice, size: int, peer_first: bool, write: WriteRows | None, raw: RawDriver | None
    ) -> None:
        values, keys = events.values[part], events.keys[part]
        now = int(time.time() * 1000)
        self.time("decode", size, lambda: decode_clicks(values, keys, now))
        updated = self.time("features", size, lambda: self._updated(events, part))
        rows: list[Rows] = self.time("score", size, lambda: self._scored(updated))
        self._parts_of_score(updated, size, peer_first)
        self.time("hand-over", size, lambda: pickle.loads(pickle.dumps((updated, rows), protocol=4)))  # noqa: S301
        if write is not None and raw is not None:
            self._writes(rows, size, peer_first, write, raw)

    def _parts_of_score(self, updated: Updated, size: int, peer_first: bool) -> None:
        states, model = load_states(list(updated.records)), self.model
        available = np.ones(model.vocabulary.size + 1, np.bool_)
        inputs = self.time("score: inputs", size, lambda: model_inputs(states, model.vocabulary))
        feed = {name: {**inputs, "available": available}[name] for name in model.manifest.inputs}

        step = model.sizes[-1]

        def alone() -> list[Any]:
            return _answers(model, feed, len(states))

        def graph() -> None:
            for start in range(0, len(states), step):
                model.run({name: rows[start : start + step] for name, rows in inputs.items()}, available)

        for stage, call in _in_turn(("score: graph", graph), (PEERS["score: graph"], alone), peer_first):
            self.time(stage, size, call)
        # Ranking with a graph that answers at once, less the inputs: feeds, choices, lists in wire form.
        answered = replace(model, session=_Answered(model, feed, len(states)))
        nothing = Fallback(Trending([], [], 0), set())
        started = time.perf_counter()
        lists = rank(answered, available, nothing, states)
        newest, written = history(states, "event_time")[:, -1], states["last_write"]
        insert_values(updated.user_ids, lists, newest, int(time.time() * 1000), TTL_S, written)
        whole = time.perf_counter() - started
        self.times["score: encode"][size].append(max(0.0, whole - self.times["score: inputs"][size][-1]))

    def _writes(self, rows: list[Rows], size: int, peer_first: bool, write: WriteRows, raw: RawDriver) -> None:
        wire = [split_values(insert) for part in rows for insert in part.inserts]

        def own() -> None:
            for part in rows:
                list(write.process_element(part, self.context))

        turns = _in_turn(
            ("write", own),
            (PEERS["write"], lambda: raw.write(wire)),
            peer_first,
        )
        for stage, call in turns:
            self.time(stage, size, call)

    def _updated(self, events: Events, part: slice) -> Updated:
        values, keys = events.values[part], events.keys[part]
        count = len(keys)
        produced = (int(time.time() * 1000),) * count
        row = Row(tuple(keys), tuple(values), (0,) * count, (0,) * count, tuple(range(count)), produced)
        found = [out for out in self.features.process_element(row, self.context) if isinstance(out, Updated)]
        assert len(found) == 1, "every batch here is of new events that can be read"
        return found[0]

    def _scored(self, updated: Updated) -> list[Rows]:
        return list(self.score.process_element(updated, self.context))

    def _serve(self, announced: Announced) -> None:
        list(self.score.process_broadcast_element(announced, self.context))
        probe = self._updated(self.shop.events(1), slice(0, 1))
        deadline = time.monotonic() + 60
        while not any(
            b"model" in row for part in self.score.process_element(probe, self.context) for row in part.inserts
        ):
            assert time.monotonic() < deadline, "the release does not serve"
            time.sleep(0.05)


def _answers(model: Model, feed: dict[str, Any], users: int) -> list[Any]:
    """What ONNX Runtime alone answers, as many users at once as the job asks for."""
    step = model.sizes[-1]
    return [
        model.session.run(
            [OUTPUT_INDEX, OUTPUT_SCORE],
            {n: v if n == "available" else v[start : start + step] for n, v in feed.items()},
        )
        for start in range(0, users, step)
    ]


class _Answered:
    """A session that has run before: it gives the lists of the same users, as many at once as they are asked for."""

    def __init__(self, model: Model, feed: dict[str, Any], users: int) -> None:
        self.get_providers = model.session.get_providers
        self._answers = _answers(model, feed, users)

    def run(self, _names: Sequence[str], _feeds: dict[str, Any]) -> Any:
        return self._answers.pop(0)


def _in_turn(own: Any, peer: Any, peer_first: bool) -> Sequence[Any]:
    return (peer, own) if peer_first else (own, peer)


def table(times: Timings) -> dict[str, dict[str, Spread]]:
    """µs per event (a row is a user: batches hold hardly a user twice up to 100 events) by stage and batch size."""
    order = [name for stage in STAGES for name in (stage, PEERS.get(stage)) if name in times]
    return {name: {str(size): per_unit(times[name][size], size) for size in SIZES} for name in order}


def ratios(times: Timings) -> dict[str, dict[str, Spread]]:
    """Speed beside the peer's: above 1 is faster than the peer."""
    return {
        f"{stage} ÷ {peer}": {str(size): ratio(times[peer][size], times[stage][size]) for size in SIZES}
        for stage, peer in PEERS.items()
        if peer in times
    }


@contextmanager
def cassandra(wanted: bool) -> Iterator[Settings]:
    """Settings of a Cassandra of one's own that runs meanwhile, or of none."""
    section = StreamingSection(providers=PROVIDERS)
    if not wanted:
        yield Settings(streaming=section)
        return
    with tempfile.TemporaryDirectory(prefix="freshrec-bench-") as folder:
        stack = Stack.create(load_local_settings(state=Path(folder)), free_ports=True)
        try:
            stack.start_servers(only=("cassandra",))
            common = stack.settings
            yield Settings(cassandra=common.cassandra, streaming=section)
        finally:
            stack.stop()


@contextmanager
def one_core() -> Iterator[None]:
    """This process on one core meanwhile, threads and all; Cassandra, started before, takes any."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, [max(cores)])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def measure(quick: bool, with_write: bool = True) -> None:
    """Time, print and write down everything."""
    run = Run("stages", quick)
    with cassandra(with_write) as settings, tempfile.TemporaryDirectory() as releases, one_core():
        bench = Bench(settings, Path(releases))
        run.say("operators are open, the release serves")
        write = raw = None
        if with_write:
            write, raw = WriteRows(settings), RawDriver(settings)
            write.open(Context())
        for size, calls in (CALLS_QUICK if quick else CALLS).items():
            bench.measure(size, calls, write, raw)
            run.say(f"batches of {size}")
        if write is not None and raw is not None:
            write.close()
            raw.close()
    found, beside = table(bench.times), ratios(bench.times)
    columns = ["batches of", *(str(size) for size in SIZES)]
    show("µs per event, one core, median (quartiles)", columns, [(n, *by.values()) for n, by in found.items()])
    show("speed ÷ peer", columns, [(n, *by.values()) for n, by in beside.items()])
    run.write({"microseconds_per_event": found, "speed_beside_peer": beside})


app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer calls.")] = False,
    no_write: Annotated[bool, typer.Option("--no-write", help="Without Cassandra and `write`.")] = False,
) -> None:
    """Time the job's stages."""
    measure(quick, not no_write)


if __name__ == "__main__":
    run_command(app)
