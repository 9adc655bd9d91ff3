"""score: rank each micro-batch's users with the model in service, and change that model between two micro-batches."""

import logging
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyflink.common import Types
from pyflink.datastream import BroadcastProcessFunction, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor

from schemas.dead_letter import bury
from schemas.ids import hash_ids
from schemas.user_state import load_states
from streaming.config import DAY_S, Settings, job_version
from streaming.control import Announced, Availability
from streaming.dead_letter import DEAD_LETTERS, row_of
from streaming.features import Updated
from streaming.metrics import Metrics
from streaming.model_slot import Model, ModelSlot, scorer_threads
from streaming.rank import Fallback, rank
from streaming.trending import Trending
from streaming.wire import insert_values

log = logging.getLogger("score")

# What every scorer must know after a restart, by name.
SHARED = MapStateDescriptor("shared", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
_RELEASES, _TRENDING, _ITEM = "releases", "trending", "item:"
# So many announced releases are remembered; after a restart the newest of them that loads is served.
_REMEMBERED = 5
# So many users are scored and written at a time: enough for a model's batch and some full batches of rows.
BLOCK = 128
# Python's threads here hand over to each other many times a micro-batch; the usual 5 ms would be waited for each time.
SWITCH_S = 0.0005
_NONE = np.zeros(0, np.int64)
# A restarted job waits so long for its model before it goes on with trending lists.
_RESTORE_S = 60.0


class Rows(NamedTuple):
    """A micro-batch of U rows to write, as the values of inserts in wire form, and of rows to delete.

    erased: (user id, write time µs). produced: int64[N] ms, of the events these rows know.
    """

    inserts: list[bytes]
    erased: list[tuple[str, int]]
    produced: NDArray[np.int64]


class _Block(NamedTuple):
    """Rows of some users, how many of them are the model's, and the time it took, µs."""

    inserts: list[bytes]
    by_model: int
    us: int


class Score(BroadcastProcessFunction):  # type: ignore[misc]
    """Users by micro-batch on one side; releases, availability and the trending list on the other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        sys.setswitchinterval(SWITCH_S)
        section = self._settings.streaming
        self._slot = ModelSlot(section.providers, scorer_threads(section.scorer_threads, section.parallelism))
        # ONNX Runtime may not be called in the task's thread: see model_slot.
        self._scorer = ThreadPoolExecutor(1, "scorer")
        self._ttl = section.row_ttl_days * DAY_S
        self._restored = False
        self._noted: Model | None = None
        self._announced: dict[str, Announced] = {}
        self._unavailable: set[str] = set()
        self._trending = Trending([], [], 0)
        self._fallback = Fallback(self._trending, set())
        self._available = np.ones(1, np.bool_)
        self._version = job_version()
        self._metrics = Metrics(runtime_context, "score").declare(
            ["users", "by_model", "by_trending", "swaps", "refused", "us"],
            ["model_version", "model_items", "load_ms"],
        )

    def close(self) -> None:
        """Called by Flink when the task ends."""
        self._slot.close()
        self._scorer.shutdown(wait=False)

    def process_broadcast_element(self, value: Any, ctx: BroadcastProcessFunction.Context) -> Iterable[Any]:
        """A release, changed availability, or a new trending list."""
        shared = ctx.get_broadcast_state(SHARED)
        self._restore(shared)
        if isinstance(value, Announced):
            remembered = [*(shared.get(_RELEASES) or []), value][-_REMEMBERED:]
            shared.put(_RELEASES, remembered)
            self._offer(value)
        elif isinstance(value, Availability):
            for item, available in value.available.items():
                if available and item in self._unavailable:
                    self._unavailable.discard(item)
                    shared.remove(_ITEM + item)
                elif not available and item not in self._unavailable:
                    self._unavailable.add(item)
                    shared.put(_ITEM + item, True)
            self._refresh()
        elif isinstance(value, Trending):
            shared.put(_TRENDING, value)
            self._trending = value
            self._fallback = Fallback(value, self._unavailable)
        yield from self._refusals()

    def process_element(self, value: Updated, ctx: BroadcastProcessFunction.ReadOnlyContext) -> Iterable[Any]:
        """States of a micro-batch in, its rows out."""
        self._restore(ctx.get_broadcast_state(SHARED))
        yield from self._refusals()
        users = len(value.user_ids)
        # All are asked for at once: while one block is written, the scorer's thread goes on with the next.
        blocks = [
            self._scorer.submit(self._block, value.user_ids[at : at + BLOCK], value.records[at : at + BLOCK])
            for at in range(0, users, BLOCK)
        ]
        last = _Block([], 0, 0)
        for number, block in enumerate(blocks):
            if number:
                yield Rows(last.inserts, [], _NONE)
            last = block.result()
            self._metrics.add(by_model=last.by_model, by_trending=len(last.inserts) - last.by_model, us=last.us)
        self._note_swap()
        self._metrics.add(users=users)
        # What was asked of the micro-batch as a whole is done when its last row is written.
        yield Rows(last.inserts, value.erased, value.produced)

    def _block(self, user_ids: list[str], records: list[bytes]) -> "_Block":
        """In the scorer's thread: change the model if one is ready, then rank and make the rows."""
        started = time.perf_counter()
        model, swapped = self._slot.take()
        if swapped:
            self._refresh()
        states = load_states(records)
        lists = rank(model, self._available, self._fallback, states)
        event_time = states["ring"]["event_time"][:, 0]
        now_ms = int(time.time() * 1000)
        inserts = insert_values(user_ids, lists, event_time, now_ms, self._ttl, states["last_write"])
        by_model = len(user_ids) - lists.version.count("")
        return _Block(inserts, by_model, int((time.perf_counter() - started) * 1e6))

    def _refresh(self) -> None:
        """Bring what depends on model and availability up to date."""
        model = self._slot.current
        self._fallback = Fallback(self._trending, self._unavailable)
        if model is not None:
            self._available = np.ones(model.vocabulary.size + 1, np.bool_)
            gone = model.vocabulary.index_of(hash_ids(list(self._unavailable)))
            self._available[gone[gone > 0]] = False

    def _note_swap(self) -> None:
        """Count a change of model, here in the task's thread: metrics live in Java."""
        model = self._slot.current
        if model is None or model is self._noted:
            return
        self._noted = model
        log.info("score: serving release %s on %s", model.manifest.version, model.provider)
        self._metrics.add(swaps=1)
        self._metrics.set(
            model_version=int("".join(c for c in model.manifest.version if c.isdigit()) or 0),
            model_items=model.vocabulary.size,
            load_ms=int(model.seconds * 1000),
        )

    def _offer(self, announced: Announced) -> "Future[bool]":
        self._announced[announced.release.manifest_sha256] = announced
        log.info("score: loading release %s from %s", announced.release.version, announced.release.uri)
        return self._slot.offer(announced.release)

    def _restore(self, shared: Any) -> None:
        """After a restart, before the first element: all that was known, and the newest release that loads."""
        if self._restored:
            return
        self._restored = True
        for name, value in list(shared.items()):
            if name.startswith(_ITEM):
                self._unavailable.add(name.removeprefix(_ITEM))
            elif name == _TRENDING:
                self._trending = value
        deadline = time.monotonic() + _RESTORE_S
        for announced in reversed(shared.get(_RELEASES) or []):
            try:
                if self._offer(announced).result(max(0.0, deadline - time.monotonic())):
                    break
            except TimeoutError:
                log.warning("score: no release loaded within %.0f s; serving trending lists", _RESTORE_S)
                break
        self._refresh()

    def _refusals(self) -> Iterable[Any]:
        """Dead letters for releases that were refused since the last call."""
        while not self._slot.refused.empty():
            release, error = self._slot.refused.get()
            log.warning("score: refused: %s", error)
            self._metrics.add(refused=1)
            announced = self._announced[release.manifest_sha256]
            now_ms = int(time.time() * 1000)
            letter = bury(
                announced.value,
                announced.key,
                announced.where,
                "release-refused",
                str(error),
                now_ms,
                self._version,
            )
            yield DEAD_LETTERS, row_of(letter)
