"""The model in service, and the next one on its way: fetched, checked and warmed beside it, then swapped in.

    1. `offer` hands an announced release to the loader thread
    2. the loader fetches the folder, checks every digest, builds the session, compares the warm-up's outputs, runs
       every batch size once
    3. `take`, called between two micro-batches, puts the loaded model in service
A release that fails on the way is refused with its reason; the model in service stays.
The model that served before is kept, so that a roll-back to it waits for nothing, whatever its size. It is let go when
another release begins to load: two models at once are what the machine must have room for.
ONNX Runtime deadlocks when it is imported or called in a task thread of Flink (its bindings ask for the interpreter's
lock in a way the embedded interpreter cannot grant), so this module is used from Python's own threads alone.
"""

import os
import queue
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelRefused
from schemas.features import Inputs, Vocabulary
from schemas.release import (
    FILES,
    ITEMS,
    MANIFEST,
    MODEL,
    OUTPUT_INDEX,
    OUTPUT_SCORE,
    WARMUP,
    Manifest,
    ModelRelease,
    check_file,
    open_manifest,
)
from streaming.sturdy import CPU, Sturdy
from streaming.wire import wire_value

# On a GPU batches are padded to one of these, so that a session sees few shapes and every one is warm; on a CPU a shape
# costs nothing, and a row that nobody needs as much as any. The largest bounds the memory of one call: users × items.
BATCH_SIZES = (1, 8, 32, 128, 256)
# Scores of two providers and precisions of one model differ in the last digits.
WARMUP_TOLERANCE = 1e-2
CUDA = "CUDAExecutionProvider"
GPU_DEVICE = Path("/dev/nvidiactl")
AGAIN = "publish it again"
Outputs = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass
class Model:
    """A model ready to score. parts: object[V + 1], each item id in the wire form of a list element of Cassandra."""

    release: ModelRelease
    manifest: Manifest
    vocabulary: Vocabulary
    parts: NDArray[np.object_]
    session: Any
    provider: str
    seconds: float

    def run(self, inputs: Inputs, available: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Top items of B users: index int64[B, K], score float32[B, K], best first. B at most BATCH_SIZES[-1]."""
        count = len(inputs["item_index"])
        spare = next(size for size in BATCH_SIZES if size >= count) - count if self.provider == CUDA else 0
        feeds: dict[str, NDArray[Any]] = {}
        for name in self.manifest.inputs:
            rows = available if name == "available" else inputs[name]
            feeds[name] = np.pad(rows, ((0, spare), (0, 0))) if spare and name != "available" else rows
        index, score = self.session.run([OUTPUT_INDEX, OUTPUT_SCORE], feeds)
        return index[:count], score[:count]


class ModelSlot:
    """Holds the model in service; `offer` and `take` may be called from any thread."""

    def __init__(self, providers: Sequence[str], threads: int) -> None:
        self._providers = list(providers)
        self._threads = threads
        self._loader = ThreadPoolExecutor(1, "model-loader")
        self._ready: queue.SimpleQueue[Model] = queue.SimpleQueue()
        self._pending: deque[ModelRelease] = deque()
        self._former: Model | None = None
        self.current: Model | None = None
        self.refused: queue.SimpleQueue[tuple[ModelRelease, ModelRefused]] = queue.SimpleQueue()

    def offer(self, release: ModelRelease) -> "Future[bool]":
        """Load a release beside the current model; the future says whether one became ready in this turn."""
        self._pending.append(release)
        return self._loader.submit(self._load_newest)

    def take(self) -> tuple[Model | None, bool]:
        """The model to score with from now on, and whether it is another one than before."""
        swapped = False
        while not self._ready.empty():
            ready = self._ready.get()
            if ready is not self.current:
                self._former, self.current = self.current, ready
                swapped = True
        return self.current, swapped

    def close(self) -> None:
        """End the loader thread."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _load_newest(self) -> bool:
        """Load the newest announced release, and older ones only while newer ones are refused."""
        while self._pending:
            release = self._pending.pop()
            older = len(self._pending)
            if self._load(release):
                for _ in range(older):
                    self._pending.popleft()
                return True
        return False

    def _load(self, release: ModelRelease) -> bool:
        for known in (self.current, self._former):
            # The digest stands for all that is in the folder.
            if known is not None and known.release.manifest_sha256 == release.manifest_sha256:
                self._ready.put(known)
                return True
        self._former = known = None
        try:
            model = load(release, self._providers, self._threads)
        except ModelRefused as error:
            self.refused.put((release, error))
            return False
        except Exception as error:  # a fault of this loader must not end the job
            reason = ModelRefused(
                f"release {release.version} cannot be loaded ({type(error).__name__}: {_one_line(error)})",
                AGAIN,
            )
            self.refused.put((release, reason))
            return False
        self._ready.put(model)
        return True


def load(release: ModelRelease, providers: Sequence[str], threads: int) -> Model:
    """Fetch, check and warm a release. Raises ModelRefused."""
    started = time.perf_counter()
    manifest = open_manifest(_fetch(release, MANIFEST), release)
    files = {name: _fetch(release, name) for name in FILES}
    for name, content in files.items():
        check_file(manifest, name, content)
    item_ids = _item_ids(files[ITEMS], manifest)
    session = _session(files[MODEL], manifest.version, providers, threads)
    session = Sturdy(
        session, lambda: _session(_fetch(release, MODEL), manifest.version, [CPU], threads), manifest.top_k
    )
    parts = np.empty(len(item_ids) + 1, np.object_)
    parts[0] = b""
    parts[1:] = [wire_value(item.encode()) for item in item_ids]
    model = Model(release, manifest, Vocabulary(item_ids), parts, session, session.get_providers()[0], 0.0)
    _warm_up(model, files[WARMUP])
    model.seconds = time.perf_counter() - started
    return model


def scorer_threads(asked: int, parallelism: int) -> int:
    """Threads of one CPU scorer: as asked, or an even share of the cores with one left for Flink's own tasks."""
    cores = len(os.sched_getaffinity(0))
    return asked or max(1, (cores - 1) // parallelism)


def _fetch(release: ModelRelease, name: str) -> bytes:
    try:
        with fsspec.open(f"{release.uri.rstrip('/')}/{name}", "rb") as file:
            content: bytes = file.read()
            return content
    except (OSError, ValueError, ImportError) as error:
        raise ModelRefused(
            f"{name} of release {release.version} cannot be read at {release.uri} ({error})",
            "make the folder readable for the job's machines",
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _item_ids(content: bytes, manifest: Manifest) -> list[str]:
    try:
        item_ids = content.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ModelRefused(f"{ITEMS} of release {manifest.version} is not UTF-8", AGAIN) from error
    if len(item_ids) != manifest.item_count:
        raise ModelRefused(
            f"{ITEMS} of release {manifest.version} has {len(item_ids)} lines, promised were {manifest.item_count}",
            AGAIN,
        )
    if not all(item_ids) or len(set(item_ids)) != len(item_ids):
        raise ModelRefused(f"{ITEMS} of release {manifest.version} has empty or repeated lines", AGAIN)
    return item_ids


def _session(graph: bytes, version: str, providers: Sequence[str], threads: int) -> Any:
    import onnxruntime  # not at the top: importing it in a task thread deadlocks

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores that Flink, Kafka and Cassandra need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    onnxruntime.set_default_logger_severity(3)
    usable = [name for name in providers if name in onnxruntime.get_available_providers()]
    if not GPU_DEVICE.exists():
        # It is compiled in; asking for it without a GPU would only write its complaint into every log.
        usable = [name for name in usable if name != CUDA]
    elif CUDA in usable:
        onnxruntime.preload_dlls()  # the CUDA libraries that came with torch
    try:
        return onnxruntime.InferenceSession(graph, options, providers=usable or ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises whatever the graph made it stumble over
        raise ModelRefused(
            f"{MODEL} of release {version} is no graph that runs ({type(error).__name__}: {_one_line(error)})",
            AGAIN,
        ) from error


def _warm_up(model: Model, content: bytes) -> None:
    """Compare the outputs with the trainer's and run every batch size, the largest first. Raises ModelRefused."""
    version = model.manifest.version
    try:
        with np.load(BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        inputs = {name: arrays[name] for name in model.manifest.inputs if name != "available"}
        index, score = arrays[OUTPUT_INDEX], arrays[OUTPUT_SCORE]
        available = arrays.get("available", np.ones(model.vocabulary.size + 1, np.bool_))
        for size in reversed(BATCH_SIZES):
            rows = np.arange(size) % len(index)
            model.run({name: values[rows] for name, values in inputs.items()}, available)
        rows = np.arange(min(len(index), BATCH_SIZES[-1]))
        index, score = index[rows], score[rows]
        got_index, got_score = model.run({name: values[rows] for name, values in inputs.items()}, available)
    except Exception as error:  # a damaged archive, arrays that do not fit the graph, a graph that does not run
        raise ModelRefused(
            f"{WARMUP} of release {version} does not run ({type(error).__name__}: {_one_line(error)})",
            AGAIN,
        ) from error
    _compare(version, model.vocabulary.size, (index, score), (got_index, got_score))


def _compare(version: str, items: int, expected: Outputs, got: Outputs) -> None:
    """Raises ModelRefused when a graph does not answer the warm-up as it did for the trainer."""
    (index, score), (got_index, got_score) = expected, got
    if got_index.shape != index.shape or got_score.shape != score.shape:
        raise ModelRefused(f"{WARMUP} of release {version} has shape {index.shape}, not {got_index.shape}", AGAIN)
    if np.isnan(got_score).any() or np.isposinf(got_score).any() or not np.isfinite(got_score).any():
        raise ModelRefused(f"{MODEL} of release {version} gives scores that are not numbers", AGAIN)
    shown = np.isfinite(got_score)
    if ((got_index < 1) | (got_index > items))[shown].any():
        raise ModelRefused(f"{MODEL} of release {version} names items outside its {items}", AGAIN)
    # What is masked is no number on either side: as far below the others as a float goes, it compares.
    low = float(np.finfo(np.float32).min)
    own = np.where(shown, got_score, low).astype(np.float64)
    trainers = np.where(np.isneginf(score), low, score).astype(np.float64)
    tolerance = WARMUP_TOLERANCE * max(1.0, float(np.abs(got_score[shown]).max(initial=0.0)))
    worst = float(np.abs(own - trainers).max(initial=0.0))
    # Where two neighbours score nearly alike their order may differ between providers.
    apart = shown & (np.abs(np.diff(own, axis=1, append=low)) > 2 * tolerance)
    apart[:, 1:] &= apart[:, :-1]
    if not np.isfinite(worst) or worst > tolerance or (got_index != index)[apart].any():
        raise ModelRefused(
            f"{MODEL} of release {version} answers the warm-up unlike the trainer's (scores {worst:.3g} apart)",
            AGAIN,
        )
