"""The models in service, and the next one on its way: fetched, checked, tried and warmed beside them, then swapped in.

    1. `offer` hands an announced release to the loader thread
    2. the loader fetches the folder, checks every digest, runs the graph in a process of its own, builds the session,
       compares the warm-up's outputs, runs every batch size once
    3. `take`, called between two micro-batches, puts the loaded model in service: as the good model when it is the
       first or was good before, else on trial beside the good one, for the share of users that its stage says
    4. a trial ends by another release; or by `roll_back`, when the guard found something; or, where it serves
       everybody, by passing: then it is the good model
A release that fails on the way is refused with its reason; the models in service stay.
While a trial lasts the good model is loaded, and afterwards the one that was good before: going back waits for
nothing. When another release has passed its first run, only the good model is kept: two at once are what the machine
must have room for.
ONNX Runtime deadlocks when it is imported or called in a task thread of Flink (its bindings ask for the interpreter's
lock in a way the embedded interpreter cannot grant), so this module is used from Python's own threads alone.
"""

import ctypes
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from schemas.errors import ModelRefused
from schemas.release import ModelRelease
from streaming.model import AGAIN, Model, load, one_line

if TYPE_CHECKING:
    from streaming.guard import Guard

# The share that serves everybody.
EVERYBODY = 100
# A release that has less than this share of the served model's items is of another shop.
LEAST_SHARED = 0.1


@dataclass(frozen=True, eq=False)
class Trial:
    """A model for release.share percent of the users, watched."""

    release: ModelRelease
    model: Model
    guard: "Guard"


class Serving(NamedTuple):
    """good: whom no trial takes gets its lists. trial: what is tried beside it."""

    good: Model | None = None
    trial: Trial | None = None

    @property
    def models(self) -> list[Model]:
        """All of them."""
        tried = [self.trial.model] if self.trial is not None else []
        return [self.good, *tried] if self.good is not None else tried

    @property
    def main(self) -> Model | None:
        """What most users are served from."""
        return self.trial.model if self.trial is not None and self.trial.release.share == EVERYBODY else self.good


class ModelSlot:
    """Holds the models in service; its functions may be called from any thread.

    guard: makes one for a trial. python: as of `load`.
    """

    def __init__(
        self, providers: Sequence[str], threads: int, guard: "Callable[[], Guard]", python: str | None = None
    ) -> None:
        self._providers = list(providers)
        self._threads = threads
        self._guard = guard
        self._python = python
        self._loader = ThreadPoolExecutor(1, "model-loader")
        self._pending: deque[ModelRelease] = deque()
        self._changing = threading.RLock()
        self._ready: deque[tuple[ModelRelease, Model]] = deque()
        self._former: Model | None = None
        self._blocked: set[str] = set()
        self._changed = False
        self.serving = Serving()
        self.refused: queue.SimpleQueue[tuple[ModelRelease, ModelRefused]] = queue.SimpleQueue()

    def offer(self, release: ModelRelease) -> "Future[bool]":
        """Load a release beside the others; the future says whether one became ready in this turn."""
        self._pending.append(release)
        return self._loader.submit(self._load_pending)

    def take(self) -> tuple[Serving, bool]:
        """What to score with from now on, and whether that has changed."""
        with self._changing:
            while self._ready:
                release, model = self._ready.popleft()
                if release.manifest_sha256 not in self._blocked:
                    self._enter(release, model)
            trial = self.serving.trial
            if trial is not None and trial.release.share == EVERYBODY and trial.guard.passed:
                self._settle(trial.model)
            changed, self._changed = self._changed, False
            return self.serving, changed

    def roll_back(self, digest: str) -> bool:
        """Never serve the release with this digest (again); whether it was in service. At once, nothing is loaded."""
        with self._changing:
            self._blocked.add(digest)
            good, trial = self.serving
            if trial is not None and trial.model.digest == digest:
                self._serve(good)
            elif good is not None and good.digest == digest:
                self._serve(self._former, trial)
                self._former = None
            else:
                return False
            return True

    def close(self) -> None:
        """End the loader thread."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _serve(self, good: Model | None, trial: Trial | None = None) -> None:
        self.serving, self._changed = Serving(good, trial), True

    def _enter(self, release: ModelRelease, model: Model) -> None:
        good, trial = self.serving
        if release.stage == "full" and (good is None or model is good or model.proven):
            self._settle(model)
        elif trial is not None and trial.model is model:
            self._serve(good, Trial(release, model, trial.guard))
        elif model is not good:
            # What serves everybody while it is watched is the one to go back to from now on: it did no harm yet.
            self._serve(self.serving.main, Trial(release, model, self._guard()))

    def _settle(self, model: Model) -> None:
        """Make a model the good one; a trial of another ends."""
        good = self.serving.good
        if model is not good:
            self._former = good
        model.proven = True
        self._serve(model)

    def _make_room(self) -> None:
        """Let go of all models but the one that serves most users."""
        with self._changing:
            self._former = None
            if self.serving.trial is not None:
                self._serve(self.serving.main)

    def _load_pending(self) -> bool:
        """Load the newest full release that was announced, and the newest trial after it.

        Older ones are loaded only while newer ones are refused.
        """
        waiting = []
        while self._pending:
            waiting.append(self._pending.popleft())
        full = [place for place, release in enumerate(waiting) if release.stage == "full"]
        trials = waiting[full[-1] + 1 if full else 0 :]
        loaded = any(self._load(waiting[place]) for place in reversed(full))
        return any(self._load(release) for release in reversed(trials)) or loaded

    def _load(self, release: ModelRelease) -> bool:
        with self._changing:
            if release.manifest_sha256 in self._blocked:
                reason = ModelRefused(f"release {release.version} was rolled back by the job", "publish another one")
                self.refused.put((release, reason))
                return False
            for known in (*self.serving.models, self._former, *(model for _, model in self._ready)):
                # The digest stands for all that is in the folder.
                if known is not None and known.digest == release.manifest_sha256:
                    self._ready.append((release, known))
                    return True
        known = None
        try:
            model = load(release, self._providers, self._threads, self._python, self._make_room)
            if self.serving.good is not None:
                compare_catalogues(model, self.serving.good)
        except ModelRefused as error:
            self.refused.put((release, error))
            return False
        except Exception as error:  # a fault of this loader must not end the job
            reason = ModelRefused(
                f"release {release.version} cannot be loaded ({type(error).__name__}: {one_line(error)})",
                AGAIN,
            )
            self.refused.put((release, reason))
            return False
        self._ready.append((release, model))
        give_back_memory()
        return True


def give_back_memory() -> None:
    """Let the C library return what loading has freed: with 20 000 items it would keep a quarter of all for itself."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # other C libraries than GNU's keep less
        trim(0)


def compare_catalogues(new: Model, good: Model) -> None:
    """Raises ModelRefused when a model is of other items than the one in service."""
    shared = int((new.vocabulary.index_of(good.hashes[1:]) > 0).sum())
    if shared < LEAST_SHARED * good.vocabulary.size:
        raise ModelRefused(
            f"release {new.manifest.version} is of another catalogue: it has {shared} of the {good.vocabulary.size} "
            f"items of {good.manifest.version}, which serves",
            "publish a release of this shop's items",
        )
