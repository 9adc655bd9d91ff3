"""The model in service, and the next one on its way: fetched, checked and warmed beside it, then swapped in.

    1. `offer` hands an announced release to the loader thread
    2. the loader fetches the folder, checks every digest, builds the session, compares the warm-up's outputs, runs
       every batch size once
    3. `take`, called between two micro-batches, puts the loaded model in service
A release that fails on the way is refused with its reason; the model in service stays.
ONNX Runtime deadlocks when it is imported or called in a task thread of Flink (its bindings ask for the interpreter's
lock in a way the embedded interpreter cannot grant), so this module is used from Python's own threads alone.
"""

import os
import queue
import struct
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
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

# Batches are padded to one of these, so that a session sees few shapes and every one is warm. The largest bounds the
# memory of one call: users × items scores.
BATCH_SIZES = (1, 8, 32, 128, 256)
# Scores of two providers and precisions of one model differ in the last digits.
WARMUP_TOLERANCE = 1e-2


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
        padded = next(size for size in BATCH_SIZES if size >= count)
        feeds: Inputs = {}
        for name in self.manifest.inputs:
            if name == "available":
                feeds[name] = available
            else:
                rows = inputs[name]
                feeds[name] = np.concatenate((rows, np.zeros((padded - count, *rows.shape[1:]), rows.dtype)))
        index, score = self.session.run([OUTPUT_INDEX, OUTPUT_SCORE], feeds)
        return index[:count], score[:count]


class ModelSlot:
    """Holds the model in service; `offer` and `take` may be called from any thread."""

    def __init__(self, providers: Sequence[str], threads: int) -> None:
        self._providers = list(providers)
        self._threads = threads
        self._loader = ThreadPoolExecutor(1, "model-loader")
        self._ready: queue.SimpleQueue[Model] = queue.SimpleQueue()
        self._wanted: ModelRelease | None = None
        self.current: Model | None = None
        self.refused: queue.SimpleQueue[tuple[ModelRelease, ModelRefused]] = queue.SimpleQueue()

    def offer(self, release: ModelRelease) -> "Future[bool]":
        """Load a release beside the current model; the future says whether it became ready."""
        self._wanted = release
        return self._loader.submit(self._load, release)

    def take(self) -> tuple[Model | None, bool]:
        """The model to score with from now on, and whether it is another one than before."""
        swapped = False
        while not self._ready.empty():
            self.current = self._ready.get()
            swapped = True
        return self.current, swapped

    def close(self) -> None:
        """End the loader thread."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _load(self, release: ModelRelease) -> bool:
        if release is not self._wanted:
            return False  # a newer one was announced meanwhile
        try:
            model = load(release, self._providers, self._threads)
        except ModelRefused as error:
            self.refused.put((release, error))
            return False
        except Exception as error:  # whatever a damaged graph makes ONNX Runtime raise
            reason = ModelRefused(
                f"release {release.version} cannot be loaded ({type(error).__name__}: {str(error)[:200]})",
                "publish it again",
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
    item_ids = files[ITEMS].decode().split("\n")[: manifest.item_count]
    if len(item_ids) != manifest.item_count:
        raise ModelRefused(
            f"release {release.version} names {len(item_ids)} items, promised were {manifest.item_count}",
            "publish it again",
        )
    session = _session(files[MODEL], providers, threads)
    parts = np.empty(len(item_ids) + 1, np.object_)
    parts[0] = b""
    parts[1:] = [struct.pack(">i", len(raw)) + raw for raw in (item.encode() for item in item_ids)]
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


def _session(graph: bytes, providers: Sequence[str], threads: int) -> Any:
    import onnxruntime  # not at the top: importing it in a task thread deadlocks

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take the cores that Flink, Kafka and Cassandra need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    onnxruntime.set_default_logger_severity(3)
    usable = [name for name in providers if name in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(graph, options, providers=usable or ["CPUExecutionProvider"])


def _warm_up(model: Model, content: bytes) -> None:
    """Compare the outputs with the trainer's and run every batch size, the largest first. Raises ModelRefused."""
    try:
        with np.load(BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        inputs = {name: arrays[name] for name in model.manifest.inputs if name != "available"}
        index, score = arrays[OUTPUT_INDEX], arrays[OUTPUT_SCORE]
        available = arrays.get("available", np.ones(model.vocabulary.size + 1, np.bool_))
        for size in reversed(BATCH_SIZES):
            rows = np.arange(size) % len(index)
            got_index, got_score = model.run({n: v[rows] for n, v in inputs.items()}, available)
    except (ValueError, KeyError, OSError) as error:
        raise ModelRefused(
            f"the warm-up of release {model.manifest.version} does not run ({type(error).__name__}: {error})",
            "publish it again",
        ) from error
    rows = np.arange(min(len(index), BATCH_SIZES[-1]))
    got_index, got_score = model.run({n: v[rows] for n, v in inputs.items()}, available)
    shown = np.isfinite(score[rows])
    if got_index.shape != index[rows].shape or not np.isfinite(got_score[shown]).all():
        raise ModelRefused(
            f"release {model.manifest.version} answers the warm-up with shape {got_index.shape} or without finite scores",
            "publish it again",
        )
    worst = float(np.abs(got_score[shown] - score[rows][shown]).max(initial=0.0))
    if worst > WARMUP_TOLERANCE * max(1.0, float(np.abs(score[rows][shown]).max(initial=0.0))):
        raise ModelRefused(
            f"release {model.manifest.version} scores the warm-up {worst:.3g} away from the trainer's",
            "publish it again",
        )
