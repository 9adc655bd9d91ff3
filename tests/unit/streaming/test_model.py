"""A release is served only if it is whole, the announced one, and answers as its trainer saw it."""

import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from schemas.errors import ModelRefused
from schemas.features import COUNTER_NAMES, Inputs, Vocabulary
from schemas.hashes import hash_ids
from schemas.release import FILES, MANIFEST, ModelRelease, digest_of
from schemas.user_state import HISTORY
from streaming.model import CUDA, GPU_SIZES, LARGEST, load, scorer_threads
from tests.releases import base_scores, make_graph, make_release, make_warmup

CPU = ["CPUExecutionProvider"]
ITEMS = [f"item-{n}" for n in range(6)]
FAVOURITES = ["item-4", "item-1"]
GRAPH = make_graph(ITEMS, FAVOURITES)


def packed(**changes: object) -> bytes:
    """The warm-up of GRAPH with some arrays replaced, or left out where the change is None."""
    inputs, outputs = make_warmup(GRAPH, len(ITEMS))
    out = BytesIO()
    np.savez(out, **{k: v for k, v in {**inputs, **outputs, **changes}.items() if v is not None})  # type: ignore[arg-type]
    return out.getvalue()


def expected() -> dict[str, NDArray[Any]]:
    return make_warmup(GRAPH, len(ITEMS))[1]


def with_constant(name: str, value: NDArray[Any]) -> bytes:
    """GRAPH with another constant in it."""
    model = onnx.load_from_string(GRAPH)
    for constant in model.graph.initializer:
        if constant.name == name:
            constant.CopyFrom(numpy_helper.from_array(value, name))
    content: bytes = model.SerializeToString()
    return content


def named_beyond() -> bytes:
    """GRAPH with all its item indices moved up by a hundred."""
    model = onnx.load_from_string(GRAPH)
    for node in model.graph.node:
        if node.op_type == "TopK":
            node.output[1] = "place"
    model.graph.initializer.append(numpy_helper.from_array(np.array(100, np.int64), "hundred"))
    model.graph.node.append(onnx.helper.make_node("Add", ["place", "hundred"], ["top_index"]))
    content: bytes = model.SerializeToString()
    return content


HIDDEN = np.full((3, 6), -np.inf, np.float32)


def histories(*rows: list[int]) -> Inputs:
    """Inputs of users who had these item indices, and nothing else."""
    index = np.zeros((len(rows), HISTORY), np.int64)
    for row, items in enumerate(rows):
        index[row, HISTORY - len(items) :] = items
    return {
        "item_index": index,
        "action": np.zeros_like(index),
        "gap": np.zeros_like(index),
        "counters": np.zeros((len(rows), len(COUNTER_NAMES)), np.float32),
    }


def test_a_whole_release_is_loaded_and_ready_to_score(tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    model = load(release, CPU, 1)
    assert (model.vocabulary.ids, model.provider, model.release) == (ITEMS, CPU[0], release)
    assert model.manifest.version == release.version
    assert model.vocabulary.index_of(hash_ids(["item-0", "item-5", "x"])).tolist() == [1, 6, 0]
    assert model.parts[2] == b"\0\0\0\x06item-1"
    index, score = model.run(histories([1], [5, 2]), np.ones(7, np.bool_))
    assert index[:, :4].tolist() == [[5, 2, 3, 4], [1, 3, 4, 6]]
    assert score[0, :5].tolist() == base_scores(ITEMS, FAVOURITES)[index[0, :5]].tolist()
    assert score.dtype == np.float32


@pytest.mark.parametrize("count", [1, 2, 8, 9, 100, LARGEST])
def test_users_are_scored_alike_in_batches_of_any_size(count: int, tmp_path: Path) -> None:
    model = load(make_release(tmp_path, ITEMS, FAVOURITES), CPU, 1)
    index, score = model.run(histories(*[[n % 6 + 1] for n in range(count)]), np.ones(7, np.bool_))
    assert index.shape == score.shape == (count, 6)
    assert all(n % 6 + 1 not in index[n, :5].tolist() for n in range(count))
    assert index[0].tolist() == index[count - 1 - (count - 1) % 6].tolist()


class OnGpu:
    """A session of the CPU that says it is a GPU's, and keeps the sizes of its batches."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.providers = [CUDA, *CPU]
        self.seen: list[int] = []

    def get_providers(self) -> list[str]:
        return self.providers

    def run(self, outputs: list[str], feeds: dict[str, NDArray[Any]]) -> Any:
        self.seen.append(len(feeds["item_index"]))
        return self.session.run(outputs, feeds)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 8), (9, 32), (128, 128), (129, 256), (300, 512), (512, 512)])
def test_on_a_gpu_few_shapes_are_run_and_the_lists_are_the_same(count: int, size: int, tmp_path: Path) -> None:
    model = load(make_release(tmp_path, ITEMS, FAVOURITES), CPU, 1)
    inputs = histories(*[[n % 6 + 1] for n in range(count)])
    expected = model.session.run(["top_index"], {**inputs, "available": np.ones(7, np.bool_)})[0]
    model.session = gpu = OnGpu(model.session)
    index, score = model.run(inputs, np.ones(7, np.bool_))
    assert gpu.seen == [size]
    assert len(score) == count
    assert index.tolist() == expected.tolist()


def test_a_large_catalogue_has_smaller_batches(tmp_path: Path) -> None:
    model = load(make_release(tmp_path, ITEMS, FAVOURITES), CPU, 1)
    assert list(model.sizes) == [LARGEST]
    model.session = gpu = OnGpu(model.session)
    assert list(model.sizes) == list(GPU_SIZES)
    by_items = {}
    for items in (262_144, 262_145, 1_048_577):
        model.vocabulary = Vocabulary([f"item-{n}" for n in range(items)])
        by_items[items] = model.sizes[-1]
    assert by_items == {262_144: 512, 262_145: 256, 1_048_577: LARGEST}
    gpu.providers = CPU  # it failed, and the CPU has taken over
    assert list(model.sizes) == [LARGEST]


def refused(release: ModelRelease, names: str) -> None:
    with pytest.raises(ModelRefused, match=names) as error:
        load(release, CPU, 1)
    assert release.version in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_file_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    (tmp_path / name).unlink()
    refused(release, f"^{name} of release .* cannot be read")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_named(name: str, tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    refused(release, f"^{name} of release .* bytes, promised were")


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_file_with_one_changed_byte_is_named(name: str, tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    raw = bytearray((tmp_path / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / name).write_bytes(raw)
    refused(release, f"^{name} of release .* digest")


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES, "20250101-000000")
    refused(replace(release, version="20260101-000000"), "holds 20250101-000000")


def test_a_folder_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    refused(
        replace(release, uri="file:///nowhere"),
        r"^manifest\.json of release .* cannot be read at file:///nowhere",
    )
    refused(
        replace(release, uri="nosuch://nowhere"),
        r"^manifest\.json of release .* cannot be read at nosuch:",
    )


def test_a_uri_may_end_with_a_slash(tmp_path: Path) -> None:
    import fsspec

    release = make_release(tmp_path, ITEMS, FAVOURITES)
    # In an object store, unlike on a disk, two slashes are another place than one.
    store = fsspec.filesystem("memory")
    for name in (MANIFEST, *FILES):
        store.pipe(f"/releases/a/{name}", (tmp_path / name).read_bytes())
    for uri in ("memory://releases/a", "memory://releases/a/", release.uri + "/"):
        assert load(replace(release, uri=uri), CPU, 1).vocabulary.size == 6
    store.rm("/releases", recursive=True)


BROKEN: dict[str, tuple[dict[str, Callable[[], bytes]], str]] = {
    "not ONNX at all": ({"model": lambda: b"hello"}, r"model\.onnx"),
    "an empty model": ({"model": lambda: b""}, r"model\.onnx"),
    "half a model": ({"model": lambda: GRAPH[: len(GRAPH) // 2]}, r"model\.onnx"),
    "a model of other items": ({"model": lambda: make_graph(ITEMS[:4], [])}, "warmup|model"),
    "a model of NaN": (
        {
            "model": lambda: with_constant("base", np.full((1, 7), np.nan, np.float32)),
            "warmup": packed,
        },
        "not numbers|finite",
    ),
    "a model of NaN that says so": (
        {
            "model": lambda: with_constant("base", np.full((1, 7), np.nan, np.float32)),
            "warmup": lambda: packed(top_score=np.full((3, 6), np.nan, np.float32)),
        },
        "not numbers|finite",
    ),
    "one NaN among the scores": (
        {
            "model": lambda: with_constant("base", np.array([[0, 1, 2, np.nan, 4, 5, 6]], np.float32)),
            "warmup": packed,
        },
        "not numbers|finite",
    ),
    "another order than the trainer's": (
        {"model": lambda: make_graph(ITEMS, ["item-0"]), "warmup": packed},
        "warmup|warm-up",
    ),
    "scores a little off": (
        {"warmup": lambda: packed(top_score=expected()["top_score"] + np.float32(0.2))},
        "warm-?up",
    ),
    "expected scores of NaN": (
        {"warmup": lambda: packed(top_score=np.full((3, 6), np.nan, np.float32))},
        "warm-?up",
    ),
    "expected scores masked": (
        {"warmup": lambda: packed(top_score=HIDDEN)},
        "warm-?up",
    ),
    "a model that shows nothing": (
        {
            "model": lambda: with_constant("base", np.full((1, 7), -np.inf, np.float32)),
            "warmup": lambda: packed(top_score=HIDDEN),
        },
        "not numbers|finite",
    ),
    "a model that names items beyond its own": (
        {
            "model": named_beyond,
            "warmup": lambda: packed(top_index=expected()["top_index"] + 100),
        },
        r"model\.onnx .* outside its 6",
    ),
    "indices of another shape": (
        {"warmup": lambda: packed(top_index=expected()["top_index"][:, :3])},
        "warm-?up",
    ),
    "fewer expected than shown": (
        {"warmup": lambda: packed(top_index=expected()["top_index"][:, :3], top_score=expected()["top_score"][:, :3])},
        "warm-?up",
    ),
    "other items in the warm-up": (
        {"warmup": lambda: packed(top_index=expected()["top_index"][:, ::-1])},
        "warm-?up",
    ),
    "a warm-up without outputs": ({"warmup": lambda: packed(top_index=None)}, "warm-?up"),
    "a warm-up without an input": ({"warmup": lambda: packed(gap=None)}, "warm-?up"),
    "a warm-up of nobody": (
        {"warmup": lambda: packed(**{n: v[:0] for n, v in expected().items()})},
        "warm-?up",
    ),
    "no archive": ({"warmup": lambda: b"hello"}, "warm-?up"),
    "half an archive": ({"warmup": lambda: packed()[:300]}, "warm-?up"),
    "an empty archive": ({"warmup": lambda: b""}, "warm-?up"),
    "pickled objects": ({"warmup": lambda: packed(more=np.array([{}], object))}, "warm-?up"),
    "an item too few": ({"items": lambda: "\n".join([*ITEMS[:-1], ""]).encode()}, "items"),
    "an item too many": ({"items": lambda: "\n".join([*ITEMS, "more", ""]).encode()}, "items"),
    "an empty item": ({"items": lambda: "\n".join(["", *ITEMS[1:], ""]).encode()}, "items"),
    "an item twice": ({"items": lambda: "\n".join([ITEMS[1], *ITEMS[1:], ""]).encode()}, "items"),
    "items in another encoding": ({"items": lambda: b"\xff\n" * 6}, "items"),
}


@pytest.mark.parametrize(("files", "names"), BROKEN.values(), ids=BROKEN)
def test_a_release_with_sound_digests_and_broken_contents_is_refused(
    files: dict[str, Callable[[], bytes]], names: str, tmp_path: Path
) -> None:
    contents: dict[str, Any] = {name: make() for name, make in files.items()}
    refused(make_release(tmp_path, ITEMS, FAVOURITES, **contents), names)


def test_scores_may_differ_in_their_last_digits(tmp_path: Path) -> None:
    nearly = packed(top_score=expected()["top_score"] * np.float32(1.001))
    assert load(make_release(tmp_path, ITEMS, FAVOURITES, warmup=nearly), CPU, 1).vocabulary.size == 6


def test_the_items_may_end_without_a_line_feed(tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES, items="\n".join(ITEMS).encode())
    assert load(release, CPU, 1).vocabulary.ids == ITEMS


@pytest.mark.parametrize(
    ("asked", "cores", "parallelism", "threads"),
    [(3, 8, 1, 3), (0, 8, 1, 7), (0, 8, 2, 3), (0, 1, 4, 1)],
)
def test_threads_are_as_asked_or_an_even_share_of_the_cores(
    asked: int, cores: int, parallelism: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert scorer_threads(asked, parallelism) == threads


def test_a_release_made_for_tests_has_the_digests_it_announces(tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    assert digest_of((tmp_path / MANIFEST).read_bytes()).sha256 == release.manifest_sha256


def test_a_release_that_the_gpu_has_no_memory_for_runs_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Measured on a real one: see tests/bench/gpu/scarce.py."""
    real = onnxruntime.InferenceSession

    def session(graph: bytes, options: Any, providers: list[str]) -> Any:
        if providers[0] == CUDA:
            raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer")
        return real(graph, options, providers=providers)

    release = make_release(tmp_path / "r", ITEMS, FAVOURITES)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, *CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr("streaming.model.GPU_DEVICE", tmp_path)
    model = load(release, [CUDA, *CPU], threads=1)
    assert model.provider == CPU[0]
    assert "the CPU does (BFCArena: Failed to allocate" in caplog.text
