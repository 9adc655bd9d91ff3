"""A model, from a release's folder: fetched, checked, tried in a process of its own, and warmed. Or refused.

ONNX Runtime deadlocks when it is imported or called in a task thread of Flink (its bindings ask for the interpreter's
lock in a way the embedded interpreter cannot grant), so this module is used from Python's own threads alone.
"""

import ctypes
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ModelRefused
from schemas.features import Inputs, Vocabulary
from schemas.hashes import hash_ids
from schemas.release import ITEMS, MODEL, OUTPUT_INDEX, OUTPUT_SCORE, WARMUP, Manifest, ModelRelease
from streaming.fetch import fetch
from streaming.rehearsal import rehearse
from streaming.sturdy import CPU, Sturdy
from streaming.wire import wire_value

log = logging.getLogger("score")

# Users of one call, at most. It bounds the memory of a call: users × items.
LARGEST = 128
# On a GPU batches are padded to one of these, so that a session sees few shapes and every one is warm; on a CPU a shape
# costs nothing, and a row that nobody needs as much as any. A GPU takes hardly longer for many users than for few while
# items are few: sizes beyond LARGEST are for where users × items are no more than LARGEST users of a million items.
GPU_SIZES: tuple[int, ...] = (1, 8, 32, LARGEST, 256, 512)
LARGEST_CALL = LARGEST * 2**20
# A run takes LARGEST × items × 4 B for its scores. With more items than these (51 MB), and on a GPU, a run beside
# another would take more memory than was set aside: there one goes at a time.
MOST_SIDE_BY_SIDE = 100_000
# Scores of two providers and precisions of one model differ in the last digits.
WARMUP_TOLERANCE = 1e-2
CUDA = "CUDAExecutionProvider"
GPU_DEVICE = Path("/dev/nvidiactl")
# CU_CTX_SCHED_BLOCKING_SYNC of CUDA's driver.
BLOCKING_SYNC = 4
AGAIN = "publish it again"
# The largest batch may take this long: what the trainer's gate allows for 64 users by default, for twice as many.
SLOWEST_S = 1.0
Outputs = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(eq=False)
class Model:
    """A model ready to score.

    By item index: parts object[V + 1], ids in the wire form of a list element of Cassandra, and hashes uint64[V + 1].
    proven: it was the good one before. seconds: that loading it took.
    """

    release: ModelRelease
    manifest: Manifest
    vocabulary: Vocabulary
    parts: NDArray[np.object_]
    hashes: NDArray[np.uint64]
    session: Any
    provider: str
    seconds: float = 0.0
    proven: bool = False

    @property
    def digest(self) -> str:
        """The digest of its manifest, which stands for all of the release."""
        return self.release.manifest_sha256

    @property
    def sizes(self) -> tuple[int, ...]:
        """Users of a call: no more than the last; on a GPU, padded to one of these. Others once the CPU took over."""
        # A list that Python keeps: asking for it is no call that could deadlock in a task thread.
        if self.session.get_providers()[0] != CUDA:
            return (LARGEST,)
        return tuple(size for size in GPU_SIZES if size <= max(LARGEST, LARGEST_CALL // self.vocabulary.size))

    def run(self, inputs: Inputs, available: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Top items of B users: index int64[B, K], score float32[B, K], best first. B at most sizes[-1]."""
        count, sizes = len(inputs["item_index"]), self.sizes
        spare = next(size for size in sizes if size >= count) - count if len(sizes) > 1 else 0
        feeds: dict[str, NDArray[Any]] = {}
        for name in self.manifest.inputs:
            rows = available if name == "available" else inputs[name]
            feeds[name] = np.pad(rows, ((0, spare), (0, 0))) if spare and name != "available" else rows
        index, score = self.session.run([OUTPUT_INDEX, OUTPUT_SCORE], feeds)
        return index[:count], score[:count]


def load(
    release: ModelRelease,
    providers: Sequence[str],
    threads: int,
    python: str | None = None,
    make_room: Callable[[], None] = lambda: None,
) -> Model:
    """Fetch, check and warm a release. Raises ModelRefused.

    python: the interpreter for a first run in a process of its own; None where there is nothing to protect.
    make_room: called before this process takes memory for it.
    """
    started = time.perf_counter()
    manifest, files = fetch(release)
    if python is not None:
        rehearse(python, manifest, files, LARGEST)
    make_room()
    item_ids = _item_ids(files[ITEMS], manifest)
    session = _session(files[MODEL], manifest.version, providers, threads)
    session = Sturdy(
        session,
        lambda: _session(fetch(release)[1][MODEL], manifest.version, [CPU], threads),
        manifest.top_k,
        in_turn=session.get_providers()[0] == CUDA or len(item_ids) > MOST_SIDE_BY_SIDE,
    )
    parts = np.empty(len(item_ids) + 1, np.object_)
    parts[0] = b""
    parts[1:] = [wire_value(item.encode()) for item in item_ids]
    hashes = np.append(np.uint64(0), hash_ids(item_ids))
    model = Model(release, manifest, Vocabulary(item_ids), parts, hashes, session, session.get_providers()[0])
    _warm_up(model, files[WARMUP])
    model.seconds = time.perf_counter() - started
    return model


def scorer_threads(asked: int, parallelism: int) -> int:
    """Threads of one CPU scorer: as asked, or an even share of the cores with one left for Flink's own tasks."""
    cores = len(os.sched_getaffinity(0))
    return asked or max(1, (cores - 1) // parallelism)


def one_line(error: Exception) -> str:
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
        _sleep_while_the_gpu_works()
    try:
        return onnxruntime.InferenceSession(graph, options, providers=usable or [CPU])
    except Exception as error:  # ONNX Runtime raises whatever the graph, or a full GPU, made it stumble over
        if CUDA in usable:
            log.warning("score: %s does not take release %s, the CPU does (%s)", CUDA, version, one_line(error))
            return _session(graph, version, [CPU], threads)
        raise ModelRefused(
            f"{MODEL} of release {version} is no graph that runs ({type(error).__name__}: {one_line(error)})",
            AGAIN,
        ) from error


def _sleep_while_the_gpu_works() -> None:
    """Who waits for the GPU sleeps meanwhile; CUDA's way is to ask it again and again, a core for each scorer.

    Eight scorers of one H200 so take 0.35 of a core each instead of 1.0, and a call as long as before.
    """
    with suppress(OSError, AttributeError):  # no driver of this kind: the session will say what that means
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuInit(0)
        driver.cuDevicePrimaryCtxSetFlags_v2(0, BLOCKING_SYNC)


def _warm_up(model: Model, content: bytes) -> None:
    """Compare the outputs with the trainer's and run the batch sizes, the largest first. Raises ModelRefused.

    Where no batch is padded, one size stands for all: on a CPU each run takes time from the model in service.
    """
    version = model.manifest.version
    largest = model.sizes[-1]
    sizes = (largest, *reversed(model.sizes)) if len(model.sizes) > 1 else model.sizes
    try:
        with np.load(BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        inputs = {name: arrays[name] for name in model.manifest.inputs if name != "available"}
        index, score = arrays[OUTPUT_INDEX][:largest], arrays[OUTPUT_SCORE][:largest]
        available = arrays.get("available", np.ones(model.vocabulary.size + 1, np.bool_))
        for size in sizes:
            rows = np.arange(size) % len(index)
            feeds = {name: values[rows] for name, values in inputs.items()}
            started = time.perf_counter()
            got_index, got_score = model.run(feeds, available)
            if size == largest:
                took = time.perf_counter() - started
                got = got_index[: len(index)], got_score[: len(index)]
    except Exception as error:  # a damaged archive, arrays that do not fit the graph, a graph that does not run
        raise ModelRefused(
            f"{WARMUP} of release {version} does not run ({type(error).__name__}: {one_line(error)})",
            AGAIN,
        ) from error
    _compare(version, model.vocabulary.size, (index, score), got)
    if took > SLOWEST_S:
        raise ModelRefused(
            f"{MODEL} of release {version} takes {took:.1f} s for {largest} users; {SLOWEST_S:g} are allowed",
            "make it smaller (trainer.shrink)",
        )


def _compare(version: str, items: int, expected: Outputs, got: Outputs) -> None:
    """Raises ModelRefused when a graph does not answer the warm-up as it did for the trainer."""
    (index, score), (got_index, got_score) = expected, got
    if got_index.shape != index.shape or got_score.shape != score.shape:
        raise ModelRefused(f"{WARMUP} of release {version} has shape {index.shape}, not {got_index.shape}", AGAIN)
    if np.isnan(got_score).any() or np.isposinf(got_score).any() or not np.isfinite(got_score).any():
        raise ModelRefused(f"{MODEL} of release {version} gives scores that are not numbers", AGAIN)
    shown = np.isfinite(got_score)
    long = got_score[shown.sum(axis=1) > 1]
    if len(long) and (long[:, 0] == np.where(np.isfinite(long), long, np.inf).min(axis=1)).all():
        raise ModelRefused(f"{MODEL} of release {version} gives every item the same score", AGAIN)
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
