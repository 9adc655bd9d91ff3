"""score: rank each micro-batch's users with the models in service, and change those between two micro-batches.

A trial gets the users whose hash falls into its share, always the same ones; a row is of one model, whichever. Beside
that, a few users now and then are scored by both models and compared (guard.py); what is found wrong goes out of
service at once, here, and as a message on `roll-backs` comes back to every scorer and blocks the release for good.
"""

import logging
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyflink.common import Row, Types
from pyflink.datastream import BroadcastProcessFunction, OutputTag, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor

from schemas.compiled import prepare
from schemas.dead_letter import bury
from schemas.roll_back import RollBack, encode_roll_back
from streaming.blocks import Block, Blocks
from streaming.config import DAY_S, Settings, job_version
from streaming.control import Announced, Availability
from streaming.dead_letter import DEAD_LETTERS, ROW_TYPE, row_of
from streaming.features import Updated
from streaming.guard import FIGURES, Guard
from streaming.metrics import Metrics
from streaming.model import Model, scorer_threads
from streaming.serving import ModelSlot, Trial
from streaming.trending import Trending

log = logging.getLogger("score")

# What every scorer must know after a restart, by name.
SHARED = MapStateDescriptor("shared", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
_RELEASES, _TRENDING, _BLOCKED, _ITEM = "releases", "trending", "blocked", "item:"
# (key, value) of a Kafka record that says what was rolled back.
ROLL_BACKS = OutputTag("roll-backs", ROW_TYPE)
# So many announced full releases are remembered; after a restart the newest of them that loads is served.
_REMEMBERED = 5
# Roll-backs that are remembered: far more than releases that could be announced again.
_BLOCKED_MOST = 1000
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


class Score(BroadcastProcessFunction):  # type: ignore[misc]
    """Users by micro-batch on one side; releases, availability and the trending list on the other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Of the process that submits the job: inside a TaskManager Python does not know where it came from.
        self._python = sys.executable

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        prepare()
        sys.setswitchinterval(SWITCH_S)
        section = self._settings.streaming
        self._slot = ModelSlot(
            section.providers,
            scorer_threads(section.scorer_threads, section.parallelism),
            lambda: Guard(section.least_overlap),
            self._python,
        )
        self._restored = False
        self._noted: tuple[Model | None, Trial | None] = (None, None)
        self._announced: dict[str, Announced] = {}
        self._unavailable: set[str] = set()
        self._version = job_version()
        self._blocks = Blocks(self._slot, section.row_ttl_days * DAY_S, self._version)
        self._metrics = Metrics(runtime_context, "score").declare(
            ["users", "by_model", "by_trial", "by_trending", "swaps", "refused", "rolled_back", "compared", "us"],
            [
                *("model_version", "model_items", "load_ms", "trial_version", "trial_percent"),
                *(f"trial_{name}_percent" for name in FIGURES),
            ],
        )
        self._compared = 0

    def close(self) -> None:
        """Called by Flink when the task ends."""
        self._slot.close()
        self._blocks.close()

    def process_broadcast_element(self, value: Any, ctx: BroadcastProcessFunction.Context) -> Iterable[Any]:
        """A release, changed availability, or a new trending list."""
        shared = ctx.get_broadcast_state(SHARED)
        self._restore(shared)
        if isinstance(value, Announced):
            shared.put(_RELEASES, _kept([*(shared.get(_RELEASES) or []), value]))
            self._offer(value)
        elif isinstance(value, RollBack):
            # Every scorer may have found it: once is enough.
            blocked = list(dict.fromkeys([*(shared.get(_BLOCKED) or []), value.manifest_sha256]))[-_BLOCKED_MOST:]
            shared.put(_BLOCKED, blocked)
            self._leave(value, [a for a in shared.get(_RELEASES) or [] if a.release.manifest_sha256 not in blocked])
        elif isinstance(value, Availability):
            for item, available in value.available.items():
                if available and item in self._unavailable:
                    self._unavailable.discard(item)
                    shared.remove(_ITEM + item)
                elif not available and item not in self._unavailable:
                    self._unavailable.add(item)
                    shared.put(_ITEM + item, True)
            self._blocks.hide(self._unavailable)
        elif isinstance(value, Trending):
            shared.put(_TRENDING, value)
            self._blocks.show(value)
        yield from self._news()

    def process_element(self, value: Updated, ctx: BroadcastProcessFunction.ReadOnlyContext) -> Iterable[Any]:
        """States of a micro-batch in, its rows out."""
        self._restore(ctx.get_broadcast_state(SHARED))
        # All are asked for at once: while one block is written, the others go on.
        blocks = self._blocks.ask(value.user_ids, value.records)
        self._blocks.compare(value.records)
        yield from self._news()
        last = Block([], 0, 0, 0)
        for number, block in enumerate(blocks):
            if number:
                yield Rows(last.inserts, [], _NONE)
            last = block.result()
            self._metrics.add(
                by_model=last.by_model,
                by_trial=last.by_trial,
                by_trending=len(last.inserts) - last.by_model - last.by_trial,
                us=last.us,
            )
        self._note_change()
        self._metrics.add(users=len(value.user_ids))
        # What was asked of the micro-batch as a whole is done when its last row is written.
        yield Rows(last.inserts, value.erased, value.produced)

    def _leave(self, roll_back: RollBack, left: list[Announced]) -> None:
        """What some scorer found holds for all. left: announced releases that are not blocked."""
        if self._slot.roll_back(roll_back.manifest_sha256):
            log.warning("score: %s is left, as another scorer found %s", roll_back.version, roll_back.reason)
        full = [announced for announced in left if announced.release.stage == "full"]
        if self._slot.serving.good is None and full:
            self._offer(full[-1])

    def _note_change(self) -> None:
        """Count a change of models, here in the task's thread: metrics live in Java."""
        serving = self._slot.serving
        model, trial = serving.main, serving.trial
        if trial is not None and trial.guard.compared != self._compared:
            self._metrics.add(compared=max(0, trial.guard.compared - self._compared))
            self._metrics.set(**{f"trial_{name}_percent": value for name, value in trial.guard.figures.items()})
            self._compared = trial.guard.compared
        if (model, trial) == self._noted:
            return
        if model is not None and model is not self._noted[0]:
            log.info("score: serving release %s on %s", model.manifest.version, model.provider)
            self._metrics.add(swaps=1)
            self._metrics.set(
                model_version=_number(model), model_items=model.vocabulary.size, load_ms=int(model.seconds * 1000)
            )
        self._metrics.set(
            trial_version=_number(trial.model) if trial is not None else 0,
            trial_percent=trial.release.share if trial is not None else 0,
        )
        if trial is not None:
            log.info("score: %s is on trial: %d %% of the users", trial.model.manifest.version, trial.release.share)
        self._noted = model, trial
        self._compared = 0

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
                self._blocks.show(value)
        self._blocks.hide(self._unavailable)
        for digest in shared.get(_BLOCKED) or []:
            self._slot.roll_back(digest)
        remembered: list[Announced] = shared.get(_RELEASES) or []
        deadline = time.monotonic() + _RESTORE_S
        full = [place for place, announced in enumerate(remembered) if announced.release.stage == "full"]
        for place in reversed(full):
            try:
                if self._offer(remembered[place]).result(max(0.0, deadline - time.monotonic())):
                    break
            except TimeoutError:
                log.warning("score: no release loaded within %.0f s; serving trending lists", _RESTORE_S)
                break
        for announced in remembered[full[-1] + 1 if full else 0 :]:
            self._offer(announced)

    def _news(self) -> Iterable[Any]:
        """Dead letters for releases that were refused since the last call, and what was rolled back."""
        while not self._blocks.rolled_back.empty():
            back = self._blocks.rolled_back.get()
            log.warning("score: rolled back %s: %s", back.version, back.reason)
            self._metrics.add(rolled_back=1)
            yield ROLL_BACKS, Row(back.version.encode(), encode_roll_back(back))
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


def _kept(announced: list[Announced]) -> list[Announced]:
    """What is remembered of these: the newest full releases, and what was tried after them."""
    full = [place for place, each in enumerate(announced) if each.release.stage == "full"]
    last = full[-1] if full else -1
    return [announced[place] for place in full[-_REMEMBERED:]] + announced[last + 1 :][-_REMEMBERED:]


def _number(model: Model) -> int:
    return int("".join(c for c in model.manifest.version if c.isdigit()) or 0)
