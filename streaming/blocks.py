"""The users of a micro-batch, block by block: ranked by the models in service and made into rows, two blocks at a time.

ONNX Runtime may not be called in the task's thread (see model.py), so blocks are worked on by threads of Python. What
one of them scores with is one value, replaced as a whole: a change of models, of what may be shown or of what is
trending is all in a block, or not at all.
"""

import queue
import threading
import time
from collections.abc import Set
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.hashes import hash_ids
from schemas.roll_back import RollBack
from schemas.user_state import States, load_states
from streaming.guard import SAMPLE
from streaming.model import LARGEST, Model, one_line
from streaming.rank import Fallback, merged, rank, takes
from streaming.serving import EVERYBODY, ModelSlot, Serving, Trial
from streaming.trending import Trending
from streaming.wire import Lists, insert_values

# While one block's graph runs, the other's rows can be made: 4 to 46 % more rows a second in a backlog on 2 cores.
SIDE_BY_SIDE = 2
_NOTHING = np.ones(1, np.bool_)


class Block(NamedTuple):
    """Rows of some users, how many of them are the good model's and the trial's, and the time it took, µs."""

    inserts: list[bytes]
    by_model: int
    by_trial: int
    us: int


class _Now(NamedTuple):
    """What is scored with. available: what each model may show, bool[V + 1], by its digest."""

    serving: Serving
    available: dict[str, NDArray[np.bool_]]
    fallback: Fallback


class Blocks:
    """Works on blocks with what a slot serves. All functions are for the task's thread; none of them waits for a block.

    ttl_s: of the rows. version: the job's, for what is rolled back.
    """

    def __init__(self, slot: ModelSlot, ttl_s: int, version: str) -> None:
        self._slot = slot
        self._ttl_s = ttl_s
        self._version = version
        self._threads = ThreadPoolExecutor(SIDE_BY_SIDE, "scorer")
        self._changing = threading.Lock()
        self._trending = Trending([], [], 0)
        self._hidden: Set[str] = frozenset()
        self._now = _Now(slot.serving, {}, Fallback(self._trending, self._hidden))
        self._comparison: Future[None] | None = None
        self.rolled_back: queue.SimpleQueue[RollBack] = queue.SimpleQueue()

    def show(self, trending: Trending) -> None:
        """What users get whom no model knows, from the next block on."""
        with self._changing:
            self._trending = trending
            self._now = self._now._replace(fallback=Fallback(trending, self._hidden))

    def hide(self, unavailable: Set[str]) -> None:
        """What no list may have, from the next block on."""
        with self._changing:
            self._hidden = frozenset(unavailable)
            serving = self._now.serving
            self._now = _Now(serving, self._available(serving), Fallback(self._trending, self._hidden))

    def ask(self, user_ids: list[str], records: list[bytes]) -> list[Future[Block]]:
        """Begin with all blocks of these users, in their order."""
        # A block is a model's batch, and some full batches of rows.
        size = max((model.sizes[-1] for model in self._slot.serving.models), default=LARGEST)
        return [
            self._threads.submit(self._block, user_ids[at : at + size], records[at : at + size])
            for at in range(0, len(user_ids), size)
        ]

    def compare(self, records: list[bytes]) -> None:
        """Have both models score some of these users, if there is a trial and it is time; nobody waits for it."""
        trial = self._slot.serving.trial
        if trial is None or not records or not trial.guard.due:
            return
        # The guard is for one thread at a time.
        if self._comparison is None or self._comparison.done():
            # Users from all over the micro-batch.
            few = records[:: max(1, len(records) // SAMPLE)][:SAMPLE]
            self._comparison = self._threads.submit(self._compare, trial, few)

    def close(self) -> None:
        """End the threads when they are done with what was begun."""
        self._threads.shutdown(wait=False)

    def _block(self, user_ids: list[str], records: list[bytes]) -> Block:
        """Change the models if one is ready, then rank and make the rows."""
        started = time.perf_counter()
        now = self._current()
        states = load_states(records)
        lists = self._lists(now, user_ids, states)
        event_time = states["ring"]["event_time"][:, 0]
        now_ms = int(time.time() * 1000)
        inserts = insert_values(user_ids, lists, event_time, now_ms, self._ttl_s, states["last_write"])
        trial = now.serving.trial
        by_trial = lists.version.count(trial.model.manifest.version) if trial is not None else 0
        by_model = len(user_ids) - lists.version.count("") - by_trial
        return Block(inserts, by_model, by_trial, int((time.perf_counter() - started) * 1e6))

    def _lists(self, now: _Now, user_ids: list[str], states: States) -> Lists:
        """Each user's list, by the trial's model or by the good one."""
        good, trial = now.serving
        if trial is None or not trial.release.share:
            return _rank(now, good, states)
        try:
            if trial.release.share == EVERYBODY:
                return _rank(now, trial.model, states)
            taken = takes(trial.release, user_ids)
            theirs = _rank(now, trial.model, states[taken])
        except Exception as error:  # a model on trial must not end the job
            self._condemn(trial, _cannot(error))
            return _rank(now, good, states)
        return merged(taken, theirs, _rank(now, good, states[~taken]))

    def _compare(self, trial: Trial, records: list[bytes]) -> None:
        """Score some users by both models; what goes wrong ends the trial."""
        now = self._current()
        good, current = now.serving
        if current is not trial or good is None:
            return
        masks = now.available[trial.model.digest], now.available[good.digest]
        try:
            trouble = trial.guard.compare(trial.model, good, masks, load_states(records))
        except Exception as error:  # of the new model: the other one's would end the job with its next block
            trouble = _cannot(error)
        if trouble is not None:
            self._condemn(trial, trouble)

    def _condemn(self, trial: Trial, trouble: str) -> None:
        """Take a model out of service, here and now; the others hear of it through Kafka."""
        digest, version = trial.model.digest, trial.model.manifest.version
        if self._slot.roll_back(digest):
            self.rolled_back.put(RollBack(version, digest, trouble, int(time.time() * 1000), self._version))

    def _current(self) -> _Now:
        with self._changing:
            serving, changed = self._slot.take()
            if changed:
                self._now = self._now._replace(serving=serving, available=self._available(serving))
            return self._now

    def _available(self, serving: Serving) -> dict[str, NDArray[np.bool_]]:
        hidden = hash_ids(list(self._hidden))
        masks = {}
        for model in serving.models:
            masks[model.digest] = np.ones(model.vocabulary.size + 1, np.bool_)
            index = model.vocabulary.index_of(hidden)
            masks[model.digest][index[index > 0]] = False
        return masks


def _rank(now: _Now, model: Model | None, states: States) -> Lists:
    return rank(model, now.available[model.digest] if model is not None else _NOTHING, now.fallback, states)


def _cannot(error: Exception) -> str:
    return f"non-finite: it cannot score ({type(error).__name__}: {one_line(error)})"
