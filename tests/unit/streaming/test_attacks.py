"""What somebody can do who may write to the folder of releases, or whose graph is hostile, and what comes of it.

Real files, real graphs, real ONNX Runtime. In each case the release is refused with its reason, before anything is
parsed where a digest tells, and in a process of its own where only a run tells; the job goes on.
"""

import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from schemas.errors import ModelRefused
from schemas.release import FILES, MANIFEST, ModelRelease, digest_of
from streaming import model, rehearsal
from streaming.model import load
from tests.releases import make_graph, make_release, make_warmup

CPU = ["CPUExecutionProvider"]
ITEMS = [f"item-{n}" for n in range(6)]
FAVOURITES = ["item-4", "item-1"]
GRAPH = make_graph(ITEMS, FAVOURITES)
GIB = 2**30


def refusal(release: ModelRelease, tried: bool = True) -> str:
    with pytest.raises(ModelRefused) as refused:
        load(release, CPU, 1, sys.executable if tried else None)
    said = str(refused.value)
    assert release.version in said and "\n" not in said
    return said


def changed(change: Callable[[onnx.ModelProto], None]) -> bytes:
    """GRAPH after a change, with no check of what came out."""
    graph = onnx.load_from_string(GRAPH)
    change(graph)
    content: bytes = graph.SerializeToString()
    return content


def hostile(folder: Path, graph: bytes) -> ModelRelease:
    """A release of a graph with sound digests, and the warm-up of GRAPH."""
    inputs, outputs = make_warmup(GRAPH, len(ITEMS))
    warmup = BytesIO()
    np.savez(warmup, **{**inputs, **outputs})
    return make_release(folder, ITEMS, FAVOURITES, model=graph, warmup=warmup.getvalue())


def test_the_honest_release_passes(tmp_path: Path) -> None:
    assert load(make_release(tmp_path, ITEMS, FAVOURITES), CPU, 1, sys.executable).vocabulary.ids == ITEMS


# ── the files ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_an_altered_file_is_not_parsed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    raw = bytearray((tmp_path / name).read_bytes())
    raw[-1] ^= 1
    (tmp_path / name).write_bytes(raw)
    monkeypatch.setattr(model, "rehearse", pytest.fail)
    monkeypatch.setattr(model, "_session", pytest.fail)
    monkeypatch.setattr(model, "_item_ids", pytest.fail)
    assert "digest" in refusal(release)


@pytest.mark.parametrize("name", FILES)
def test_files_of_two_signed_releases_cannot_be_mixed(name: str, tmp_path: Path) -> None:
    release = make_release(tmp_path / "a", ITEMS, FAVOURITES)
    make_release(tmp_path / "b", [*ITEMS[:5], "item-9"], FAVOURITES[:1])
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    assert any(word in refusal(release) for word in ("digest", "bytes, promised"))


def test_an_old_manifest_cannot_stand_in_for_the_announced_one(tmp_path: Path) -> None:
    make_release(tmp_path / "old", ITEMS, FAVOURITES, "20250101-000000")
    release = make_release(tmp_path / "new", ITEMS, FAVOURITES)
    for name in (MANIFEST, *FILES):
        (tmp_path / "new" / name).write_bytes((tmp_path / "old" / name).read_bytes())
    assert "announced was" in refusal(release)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_link_is_not_followed_even_to_the_right_bytes(name: str, tmp_path: Path) -> None:
    release = make_release(tmp_path / "a", ITEMS, FAVOURITES)
    (tmp_path / "a" / name).rename(tmp_path / name)
    (tmp_path / "a" / name).symlink_to(tmp_path / name)
    assert f"{name} of release" in refusal(release)


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    release = make_release(tmp_path / "a", ITEMS, FAVOURITES)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for uri in ((tmp_path / "b").as_uri(), (tmp_path / "b").as_uri() + "/"):
        assert "cannot be read" in refusal(replace(release, uri=uri))


@pytest.mark.parametrize("way", ["a/../b", "a/%2e%2e/b", "../{}/b", "b/.."])
def test_a_path_with_dots_leads_nowhere(way: str, tmp_path: Path) -> None:
    release = make_release(tmp_path / "b", ITEMS, FAVOURITES)
    (tmp_path / "a").mkdir()
    uri = f"{tmp_path.as_uri()}/{way.format(tmp_path.name)}"
    assert "leads elsewhere" in refusal(replace(release, uri=uri))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "items/../model.onnx", "more"])
def test_a_manifest_that_names_other_files_is_refused(name: str, tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    text = (tmp_path / MANIFEST).read_text().replace('"files":{', f'"files":{{"{name}":{{"sha256":"","size":1}},')
    (tmp_path / MANIFEST).write_text(text)
    assert "which no release has" in refusal(replace(release, manifest_sha256=digest_of(text.encode()).sha256))


@pytest.mark.parametrize("version", ["../20260101-000000", "20260101-000000/..", "20260101-000000\n", "latest", ""])
def test_a_version_that_is_a_path_is_none(version: str, tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    text = (tmp_path / MANIFEST).read_text().replace(release.version, version.replace("\n", "\\n"))
    (tmp_path / MANIFEST).write_text(text)
    forged = replace(release, version=version, manifest_sha256=digest_of(text.encode()).sha256)
    with pytest.raises(ModelRefused, match="is not a manifest"):
        load(forged, CPU, 1)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert "no plain file" in refusal(release)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_of_an_endless_file_no_more_is_read_than_was_promised(name: str, tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(64 * GIB)  # holes: it takes no room on the disk
    before = psutil.Process().memory_info().rss
    assert any(word in refusal(release) for word in ("bytes, promised", "has more than"))
    assert psutil.Process().memory_info().rss - before < 0.1 * GIB


def test_a_manifest_cannot_promise_more_than_a_machine_holds(tmp_path: Path) -> None:
    release = make_release(tmp_path, ITEMS, FAVOURITES)
    size = (tmp_path / "items").stat().st_size
    text = (tmp_path / MANIFEST).read_text().replace(f'"size":{size}', f'"size":{64 * GIB}')
    (tmp_path / MANIFEST).write_text(text)
    assert "is not a manifest" in refusal(replace(release, manifest_sha256=digest_of(text.encode()).sha256))


def test_a_warm_up_that_unpacks_to_more_than_fits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_session", pytest.fail)
    bomb, out = BytesIO(), BytesIO()
    header = {"shape": (16 * GIB,), "fortran_order": False, "descr": "|u1"}
    np.lib.format.write_array_header_1_0(bomb, header)  # type: ignore[no-untyped-call]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("gap.npy", bomb.getvalue() + b"\0" * 2**20)
    assert "memory" in refusal(make_release(tmp_path, ITEMS, FAVOURITES, warmup=out.getvalue()))


# ── the graph ───────────────────────────────────────────────────────────────────────────────────


def _external(graph: onnx.ModelProto) -> None:
    for constant in graph.graph.initializer:
        if constant.name == "base":
            constant.ClearField("raw_data")
            constant.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "../../../../../../etc/passwd"), ("offset", "0"), ("length", "28")):
                constant.external_data.add(key=key, value=value)


def _external_in_attribute(graph: onnx.ModelProto) -> None:
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.ClearField("raw_data")
                attribute.t.data_location = TensorProto.EXTERNAL
                attribute.t.external_data.add(key="location", value="items")


def _node(graph: onnx.ModelProto, kind: str, inputs: list[str], output: str, first: bool = False, **more: Any) -> None:
    """Put a node before all others, or behind them."""
    node = helper.make_node(kind, inputs, [output], **more)
    if first:
        graph.graph.node.insert(0, node)
    else:
        graph.graph.node.append(node)


def _constant(graph: onnx.ModelProto, name: str, value: Any) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(value, name))


def _unknown_operator(graph: onnx.ModelProto) -> None:
    _node(graph, "Exfiltrate", ["counters"], "nowhere")


def _unknown_domain(graph: onnx.ModelProto) -> None:
    graph.opset_import.append(helper.make_opsetid("evil.example", 1))
    _node(graph, "Exfiltrate", ["counters"], "nowhere", domain="evil.example")


def _domain_in_a_function(graph: onnx.ModelProto) -> None:
    inner = helper.make_node("Exfiltrate", ["x"], ["y"], domain="evil.example")
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("evil.example", 1)]
    graph.functions.append(helper.make_function("mine", "Harmless", ["x"], ["y"], [inner], domains))
    graph.opset_import.append(helper.make_opsetid("mine", 1))
    _node(graph, "Harmless", ["counters"], "nowhere", domain="mine")


def _loop(graph: onnx.ModelProto) -> None:
    """A loop that would take years, on a condition that never changes."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    _constant(graph, "always", np.array(True))
    _constant(graph, "turns", np.array(2**60, np.int64))
    graph.graph.node.append(helper.make_node("Loop", ["turns", "always"], [], body=body))


def _another_input(graph: onnx.ModelProto) -> None:
    graph.graph.input.append(helper.make_tensor_value_info("password", TensorProto.FLOAT, ["B", 1]))


def _longer_history(graph: onnx.ModelProto) -> None:
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5000


def _more_items(graph: onnx.ModelProto) -> None:
    for value in graph.graph.input:
        if value.name == "available":
            value.type.tensor_type.shape.dim[0].dim_value = 10**6


def _longer_lists(graph: onnx.ModelProto) -> None:
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 10**6


HOSTILE = {
    "external data": (_external, "keeps the weights 'base' outside of its file"),
    "external data in an attribute": (_external_in_attribute, "outside of its file"),
    "an unknown operator": (_unknown_operator, "Exfiltrate"),
    "an unknown domain": (_unknown_domain, "unknown domain 'evil.example'"),
    "an unknown domain in a function": (_domain_in_a_function, "unknown domain 'evil.example'"),
    "a loop": (_loop, "Loop, which may never end"),
    "an input that nobody declared": (_another_input, "password"),
    "a longer history than declared": (_longer_history, "5000"),
    "more items than declared": (_more_items, "1000000"),
    "longer lists than declared": (_longer_lists, "1000000"),
}


@pytest.mark.parametrize(("change", "names"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_graph_is_refused_before_the_job_loads_it(
    change: Callable[[onnx.ModelProto], None], names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_session", pytest.fail)
    assert names in refusal(hostile(tmp_path, changed(change)))


def _bomb(elements: int) -> Callable[[onnx.ModelProto], None]:
    """Some hundred bytes that grow to `elements` floats when the graph is run, or optimised."""

    def change(graph: onnx.ModelProto) -> None:
        _constant(graph, "much", np.array([elements], np.int64))
        graph.graph.node.insert(0, helper.make_node("ConstantOfShape", ["much"], ["zeros"]))
        graph.graph.node.insert(1, helper.make_node("ReduceMax", ["zeros"], ["nought"], keepdims=0))
        for node in graph.graph.node:
            if node.op_type == "Add" and node.output[0] == "raw":
                node.output[0] = "honest"
        _node(graph, "Add", ["honest", "nought"], "raw")
        nodes = sorted(graph.graph.node, key=lambda n: ["zeros", "nought"].count(n.output[0]) == 0)
        place = next(i for i, n in enumerate(nodes) if n.output[0] == "honest")
        nodes.insert(place + 1, nodes.pop())
        del graph.graph.node[:]
        graph.graph.node.extend(nodes)

    return change


@pytest.mark.parametrize("gib", [4, 64, 2**20])
def test_a_memory_bomb_goes_off_in_a_process_of_its_own_with_limits(
    gib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_session", pytest.fail)
    peak, done = [0], threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not done.is_set():
            for child in own.children():
                try:
                    peak[0] = max(peak[0], child.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    before = psutil.Process().memory_info().rss
    watcher.start()
    try:
        said = refusal(hostile(tmp_path, changed(_bomb(gib * GIB // 4))))
    finally:
        done.set()
        watcher.join()
    assert any(word in said.lower() for word in ("memory", "alloc")), said
    assert 0 < peak[0] < GIB, "the process was held to what a graph of this size needs"
    assert psutil.Process().memory_info().rss - before < 0.1 * GIB


def test_the_bomb_is_a_sound_model_but_for_its_size(tmp_path: Path) -> None:
    assert load(hostile(tmp_path, changed(_bomb(1000))), CPU, 1, sys.executable).vocabulary.size == len(ITEMS)


@pytest.mark.parametrize("code", ["import os; os.kill(os.getpid(), 11)", "import os; os._exit(3)", "print('ok!')"])
def test_a_graph_that_kills_its_process_is_refused_and_the_job_lives(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **more: real([command[0], "-c", code], **more))
    assert "model.onnx of release" in refusal(make_release(tmp_path, ITEMS, FAVOURITES))


@pytest.mark.timeout(30)
def test_a_graph_that_is_too_slow_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(graph: onnx.ModelProto) -> None:
        size = 6000  # some 10^12 multiplications: minutes of a core
        _constant(graph, "one", np.array([size, size], np.int64))
        graph.graph.node.insert(0, helper.make_node("RandomNormal", [], ["m0"], shape=[size, size]))
        for n in range(9):
            graph.graph.node.insert(n + 1, helper.make_node("MatMul", [f"m{n}", f"m{n}"], [f"m{n + 1}"]))
        graph.graph.output.append(helper.make_tensor_value_info("m9", TensorProto.FLOAT, [size, size]))

    monkeypatch.setattr(rehearsal, "LONGEST_S", 3)
    monkeypatch.setattr(rehearsal, "ROOM_BYTES", 4 * GIB)
    before, began = set(_running()), time.monotonic()
    assert "is not done after 3 s" in refusal(hostile(tmp_path, changed(slow)))
    assert time.monotonic() - began < 10
    assert set(_running()) <= before


def _running() -> list[int]:
    """Processes that this one started; servers of other tests among them."""
    return [child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def test_a_graph_slower_than_the_gate_allows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "SLOWEST_S", 1e-6)
    assert "s for 128 users; 1e-06 are allowed" in refusal(make_release(tmp_path, ITEMS, FAVOURITES), tried=False)


@pytest.mark.parametrize(
    ("base", "names"),
    [
        (np.full((1, 7), np.nan, np.float32), "not numbers"),
        (np.full((1, 7), np.inf, np.float32), "not numbers"),
        (np.zeros((1, 7), np.float32), "the same score"),
    ],
    ids=["NaN", "infinite", "constant"],
)
def test_a_graph_whose_scores_say_nothing_is_refused(base: Any, names: str, tmp_path: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        for constant in graph.graph.initializer:
            if constant.name == "base":
                constant.CopyFrom(numpy_helper.from_array(base, "base"))

    graph = changed(change)
    # Its trainer has seen the same: the warm-up agrees.
    assert names in refusal(make_release(tmp_path, ITEMS, FAVOURITES, model=graph, warmup=_warmup_of(graph)))


def _warmup_of(graph: bytes) -> bytes:
    inputs, outputs = make_warmup(graph, len(ITEMS))
    out = BytesIO()
    np.savez(out, **{**inputs, **outputs})
    return out.getvalue()
