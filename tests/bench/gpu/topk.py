"""Exact top-100 of a million items for a thousand users on a GPU, beside the product of the matrices alone.

    python -m tests.bench.gpu.topk [--out FILE]       on the GPU; a table last, and the same as JSON
    TRITON_INTERPRET=1 python -m tests.bench.gpu.topk --rehearse      small, on the CPU: that nothing stumbles

Ways: the product of the matrices alone · torch, plain and by block maximum · kernels of our own (fused.py) · the end of
the lean graph in ONNX Runtime, with and without bound inputs and outputs · the whole lean graph. Every way masks 50
items that a user had and one item in a hundred that is not to be had. All lists are compared with those of float64.

device ms: of the GPU between two events, replayed as a CUDA graph, its cache filled with something else before.
wall ms: of whoever calls and waits, the users' vectors and histories on the host before and the lists there after it
(torch and our kernels: from and to pinned memory).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from schemas.features import COUNTER_NAMES, GAP_BUCKETS
from schemas.release import OUTPUT_INDEX, OUTPUT_SCORE
from tests.bench.figures import Spread, ratio, spread
from tests.bench.gpu.fused import FusedTopK, Shape
from trainer.lean import lay
from trainer.lean_nodes import Nodes
from trainer.lean_rank import best
from trainer.network import Network
from trainer.recipe import NetworkConfig

CUDA = "CUDAExecutionProvider"
# Rounds in which all ways take turns, and calls of one way in a round; an interpreter is too slow for more than one.
ROUNDS, CALLS = (5, 20) if torch.cuda.is_available() else (1, 1)
# More than twice the largest cache of a GPU.
CACHE_BYTES = 2**28
# Of float64 scores that are held at once.
AT_ONCE = 64
# What sums in float32 may be off by. (Half precision rounds scores of about 5 to steps of 0.004.)
EXACT = 1e-4
SHAPES = [
    Shape(),
    Shape(stages=3, each=1),
    Shape(block=16),
    Shape(items=64, stages=3),
    Shape(items=64, stages=3, each=3),
    Shape(users=256, warps=8, stages=3, each=1),
    Shape(users=256, items=64, warps=8, stages=3, each=1),
    Shape(items=256, warps=8, each=1),
    Shape(users=64, items=128, stages=3),
    Shape(rows=64),
]
Way = Callable[[], tuple[Any, Any]]


@dataclass(frozen=True)
class Sizes:
    """Of the question. had: items of a history."""

    users: int = 1024
    items: int = 1_024_000
    width: int = 128
    top_k: int = 100
    had: int = 50


@dataclass
class Question:
    """On the device: user float16[B, D], table float16[V, D], bias float32[V], history int64[B, S]."""

    user: Tensor
    table: Tensor
    bias: Tensor
    history: Tensor
    available: Tensor


@dataclass
class Found:
    """Of one way: times, the share of float64's lists it found, how far below the best it is at worst."""

    device_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    kept: float | None = None
    regret: float | None = None


def question(sizes: Sizes, device: str) -> Question:
    """Random vectors; of each history the last item is the user's very best one."""
    draw = torch.Generator(device).manual_seed(5)
    user = torch.randn(sizes.users, sizes.width, generator=draw, device=device) * sizes.width**-0.5
    table = torch.randn(sizes.items, sizes.width, generator=draw, device=device).half()
    bias = 0.3 * torch.randn(sizes.items, generator=draw, device=device)
    available = torch.rand(sizes.items, generator=draw, device=device) > 0.01
    available[0] = False
    # As half precision knows it, in every way.
    bias = bias.half().float().masked_fill(~available, float("-inf"))
    history = torch.randint(1, sizes.items, (sizes.users, sizes.had), generator=draw, device=device)
    asked = Question(user.half(), table, bias, history, available)
    for at in range(0, sizes.users, AT_ONCE):
        history[at : at + AT_ONCE, -1] = scores(asked, at).argmax(dim=1)
    return asked


def scores(asked: Question, at: int) -> Tensor:
    """float64[AT_ONCE, V] for the users from `at`."""
    return asked.user[at : at + AT_ONCE].double() @ asked.table.double().T + asked.bias


def truth(asked: Question, top_k: int) -> tuple[Tensor, Tensor]:
    """The lists in float64: index int64[B, K], score float64[B, K]."""
    parts = []
    for at in range(0, len(asked.user), AT_ONCE):
        masked = scores(asked, at).scatter_(1, asked.history[at : at + AT_ONCE], float("-inf"))
        parts.append(masked.topk(top_k, dim=1))
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def judged(asked: Question, index: Tensor, right: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Share of the right items among those of a way, and how much less its nth best is worth at most."""
    index = index.to(asked.user.device)
    own = torch.einsum("bd,bkd->bk", asked.user.double(), asked.table[index].double()) + asked.bias[index]
    had = (index[:, :, None] == asked.history[:, None, :]).any(dim=2)
    own = own.masked_fill(had, float("-inf")).sort(dim=1, descending=True).values
    kept = (index[:, :, None] == right[0][:, None, :]).any(dim=2).double().mean()
    return float(kept), float((right[1] - own).max())


# ── ways ─────────────────────────────────────────────────────────────────────────────────────────


def torch_ways(asked: Question, sizes: Sizes) -> dict[str, Way]:
    """The product alone; product and top-K; product, block maxima, top-K of the best blocks."""
    score = torch.empty(sizes.users, sizes.items, dtype=torch.float16, device=asked.user.device)
    bias = asked.bias.half()
    block = 64

    def product() -> tuple[Tensor, Tensor]:
        torch.mm(asked.user, asked.table.T, out=score)
        return score, score

    def masked() -> Tensor:
        torch.addmm(bias, asked.user, asked.table.T, out=score)
        return score.scatter_(1, asked.history, float("-inf"))

    def plain() -> tuple[Tensor, Tensor]:
        top = masked().topk(sizes.top_k, dim=1)
        return top.indices, top.values

    def by_block() -> tuple[Tensor, Tensor]:
        blocks = masked().view(sizes.users, -1, block)
        chosen = blocks.amax(dim=2).topk(sizes.top_k, dim=1, sorted=False).indices
        within = blocks.gather(1, chosen[:, :, None].expand(-1, -1, block)).flatten(1)
        top = within.topk(sizes.top_k, dim=1)
        return chosen.gather(1, top.indices // block) * block + top.indices % block, top.values

    return {"product alone": product, "torch, top-K": plain, "torch, block maxima": by_block}


def ranking(asked: Question, sizes: Sizes, width: int, single: bool) -> bytes:
    """The lean graph from the user vector on. width: of blocks, 1 = none. single: compare in float32, as it does."""
    nodes = Nodes(half=True)
    table, shown = nodes.constant(asked.table.cpu().numpy()), nodes.floats(asked.bias.half().cpu())
    bias = nodes.op("Where", "available", shown, nodes.floats(float("-inf")))
    score = nodes.op("Gemm", "user", table, bias, transB=1)
    kind = np.float32 if single else np.float16
    if single:
        score = nodes.op("Cast", score, to=TensorProto.FLOAT)
        nodes.shape_is(score, "batch", sizes.items)
    nothing = nodes.op("Expand", nodes.constant(np.array(-np.inf, kind)), nodes.op("Shape", "item_index"))
    score = nodes.op("ScatterElements", score, "item_index", nothing, axis=1)
    top, index = best(nodes, sizes.items - 1, score, sizes.top_k, width)
    nodes.output(OUTPUT_SCORE, top if single else nodes.op("Cast", top, to=TensorProto.FLOAT))
    nodes.output(OUTPUT_INDEX, index)
    inputs = [
        helper.make_tensor_value_info("user", TensorProto.FLOAT16, ["batch", sizes.width]),
        helper.make_tensor_value_info("item_index", TensorProto.INT64, ["batch", sizes.had]),
        helper.make_tensor_value_info("available", TensorProto.BOOL, [sizes.items]),
    ]
    outputs = [
        helper.make_tensor_value_info(OUTPUT_INDEX, TensorProto.INT64, ["batch", sizes.top_k]),
        helper.make_tensor_value_info(OUTPUT_SCORE, TensorProto.FLOAT, ["batch", sizes.top_k]),
    ]
    return bytes(nodes.made(inputs, outputs).SerializeToString())


def opened(graph: bytes, on_gpu: bool, batch: int = 0) -> onnxruntime.InferenceSession:
    """A session. batch: it captures a CUDA graph, of batches of this size.

    Raises RuntimeError where it should be on the GPU and is not.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not on_gpu:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    wanted = {"arena_extend_strategy": "kSameAsRequested"}
    if batch:
        options.add_free_dimension_override_by_name("batch", batch)
        wanted["enable_cuda_graph"] = "1"
    session = onnxruntime.InferenceSession(graph, options, providers=[(CUDA, wanted), "CPUExecutionProvider"])
    if session.get_providers()[0] != CUDA:
        raise RuntimeError(f"ONNX Runtime runs on {session.get_providers()[0]}")
    return session


def runtime_ways(session: onnxruntime.InferenceSession, feed: dict[str, Any], sizes: Sizes) -> dict[str, Way]:
    """A graph fed from and answering to the host's memory, and one bound to that of the GPU."""
    names = [OUTPUT_INDEX, OUTPUT_SCORE]
    feed = {value.name: feed[value.name] for value in session.get_inputs()}

    def fed() -> tuple[Any, Any]:
        index, score = session.run(names, feed)
        return index, score

    device = "cuda" if session.get_providers()[0] == CUDA else "cpu"
    kinds = (np.int64, np.float32)
    kept = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0) for name, value in feed.items()}
    shape = (sizes.users, sizes.top_k)
    answers = [onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0) for kind in kinds]
    binding = session.io_binding()
    for name, value in kept.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in zip(names, answers, strict=True):
        binding.bind_ortvalue_output(name, value)

    def bound() -> tuple[Any, Any]:
        for name, value in feed.items():
            if name != "available":  # that changes a few times a minute
                kept[name].update_inplace(value)
        session.run_with_iobinding(binding)
        return answers[0].numpy(), answers[1].numpy()

    return {"": fed, ", bound": bound}


def whole_graph(sizes: Sizes) -> tuple[bytes, dict[str, Any]]:
    """The lean graph in half precision with encoder and all, and random users."""
    torch.manual_seed(6)
    network = Network(NetworkConfig(sizes.items - 1, sizes.width, 2, max(1, sizes.width // 32), history=sizes.had))
    graph = bytes(lay(network, sizes.top_k, half=True)[0].SerializeToString())
    draw = np.random.default_rng(7)
    shape = (sizes.users, sizes.had)
    feed = {
        "item_index": draw.integers(1, sizes.items, shape),
        "action": draw.integers(1, 5, shape),
        "gap": draw.integers(0, GAP_BUCKETS, shape),
        "age": draw.integers(0, GAP_BUCKETS, shape),
        "counters": draw.random((sizes.users, len(COUNTER_NAMES)), np.float32),
        "available": np.ones(sizes.items, np.bool_),
    }
    return graph, feed


# ── times ────────────────────────────────────────────────────────────────────────────────────────


def replayed(way: Way) -> Way:
    """The same work as one CUDA graph. Raises RuntimeError where it cannot be captured."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            way()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = way()

    def replay() -> tuple[Any, Any]:
        graph.replay()
        return answer

    return replay


def device_ms(way: Way, calls: int) -> list[float]:
    """Between two events, each time with a cache that holds something else."""
    if not torch.cuda.is_available():
        return wall_ms(way, calls)
    other = torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")
    event: Any = torch.cuda.Event
    events = [[event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    for begin, end in events:
        other.zero_()
        begin.record()
        way()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def wall_ms(way: Way, calls: int) -> list[float]:
    """Until the caller has the answer on the host."""
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        way()
        took.append((time.perf_counter() - began) * 1000)
    return took


def from_host(way: Way, asked: Question) -> Way:
    """The same with vectors and histories that come from the host, and lists that go there."""
    if not asked.user.is_cuda:
        return way
    inputs = [(value, value.cpu().pin_memory()) for value in (asked.user, asked.history)]
    answers = [value.cpu().pin_memory() for value in way()]

    def called() -> tuple[Any, Any]:
        for on_device, on_host in inputs:
            on_device.copy_(on_host, non_blocking=True)
        for on_host, on_device in zip(answers, way(), strict=True):
            on_host.copy_(on_device, non_blocking=True)
        torch.cuda.synchronize()
        return answers[0], answers[1]

    return called


def best_shape(asked: Question, sizes: Sizes, shapes: list[Shape]) -> tuple[Shape, list[dict[str, Any]]]:
    """The fastest of the shapes, and what each of their kernels takes."""
    tried: list[dict[str, Any]] = []
    for shape in shapes:
        try:
            fused = FusedTopK(asked.table, asked.bias, sizes.top_k, sizes.had, sizes.users, shape)
            short = asked.history.int()
            kernels: dict[str, Any] = {
                "maxima": partial(fused.maxima, asked.user),
                "pick": partial(fused.pick, asked.user, short),
                "rescore": partial(fused.rescore, asked.user, short),
                "finish": partial(fused.finish, sizes.users),
            }
            row = {}
            for name, kernel in kernels.items():
                kernel()
                row[name] = float(np.median(device_ms(kernel, CALLS)))
        except Exception as problem:  # a shape that does not fit this GPU is no reason to end
            print(f"{shape}: {type(problem).__name__}: {str(problem)[:200]}", flush=True)
            continue
        tried.append({**asdict(shape), **row, "all": sum(row.values())})
        print("  ".join(f"{name} {value:.3f}" for name, value in row.items()), shape, flush=True)
    fastest = min(tried, key=lambda row: float(row["all"]))
    return Shape(**{name: fastest[name] for name in asdict(Shape())}), tried


def measured(sizes: Sizes, shapes: list[Shape], on_gpu: bool) -> tuple[dict[str, Found], list[dict[str, Any]]]:
    """Every way, and every shape of our own kernels."""
    asked = question(sizes, "cuda" if on_gpu else "cpu")
    right = truth(asked, sizes.top_k)
    print("question and float64's answer are there", flush=True)
    shape, tried = best_shape(asked, sizes, shapes)
    fused = FusedTopK(asked.table, asked.bias, sizes.top_k, sizes.had, sizes.users, shape)
    short = asked.history.int()
    on_device = {**torch_ways(asked, sizes), "our kernels": lambda: fused(asked.user, short)}
    for name, way in on_device.items() if on_gpu else ():
        try:
            on_device[name] = replayed(way)
        except RuntimeError as problem:  # then its launches are timed, too
            print(f"{name} as a CUDA graph: {str(problem)[:200]}", flush=True)
    calling = {name: from_host(way, asked) for name, way in on_device.items() if name != "product alone"}

    feed = {
        "user": asked.user.cpu().numpy(),
        "item_index": asked.history.cpu().numpy(),
        "available": asked.available.cpu().numpy(),
    }
    graphs = {
        "graph's end, TopK": (ranking(asked, sizes, 1, single=True), feed),
        "graph's end, block maxima": (ranking(asked, sizes, 64, single=True), feed),
        "graph's end, maxima, half": (ranking(asked, sizes, 64, single=False), feed),
        "whole graph": whole_graph(sizes),
    }
    captured = [("graph's end, maxima, half", ", CUDA graph")] if on_gpu else []
    for name, kind in [*((name, "") for name in graphs), *captured]:
        try:
            graph, fed = graphs[name]
            session = opened(graph, on_gpu, sizes.users if kind else 0)
            ways = runtime_ways(session, fed, sizes)
            for label, run in ways.items():
                if not kind or label:
                    run()
                    calling[name + kind + label] = run
        except Exception as problem:  # what ONNX Runtime cannot run is a row less
            print(f"{name}{kind}: {type(problem).__name__}: {str(problem)[:300]}", flush=True)
    print("ONNX Runtime is there", flush=True)

    found = {name: Found() for name in [*on_device, *(name for name in calling if name not in on_device)]}
    for name, run in (on_device | calling).items():
        if name != "product alone" and not name.startswith("whole"):
            index = torch.as_tensor(run()[0])
            found[name].kept, found[name].regret = judged(asked, index, right)
    for _ in range(ROUNDS):
        for name, way in on_device.items():
            found[name].device_ms += device_ms(way, CALLS)
        for name, way in calling.items():
            found[name].wall_ms += wall_ms(way, CALLS)
    return found, tried


def main() -> None:
    """Measure; see the module. Raises SystemExit where our kernels' lists are not exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("topk.json"))
    given = parser.parse_args()
    on_gpu, sizes, shapes = not given.rehearse, Sizes(), SHAPES
    if given.rehearse:
        sizes, shapes = Sizes(8, 12_800, 32, 20, 10), [replace(Shape(), users=16, items=64, rows=32)]
    else:
        onnxruntime.preload_dlls()
    found, tried = measured(sizes, shapes, on_gpu)
    product = found["product alone"].device_ms

    def told(times: list[float]) -> dict[str, float] | None:
        return spread(times).as_json() if times else None

    def share(times: list[float]) -> Spread | None:
        return ratio(times, product) if times else None

    content = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "triton", "onnxruntime-gpu")},
        "sizes": asdict(sizes),
        "ways": {
            name: {
                "device_ms": told(row.device_ms), "wall_ms": told(row.wall_ms), "kept": row.kept, "regret": row.regret,
            }
            for name, row in found.items()
        },
        "shapes": tried,
    }  # fmt: skip
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{'way':40}{'device ms':>10}{'÷ product':>11}{'wall ms':>10}{'÷ product':>11}{'kept':>9}{'regret':>10}")
    for name, row in found.items():
        cells = ""
        for times in (row.device_ms, row.wall_ms):
            part = share(times)
            cells += f"{spread(times).median:10.3f}{part.median:11.2f}" if part else f"{'':21}"
        right = "" if row.kept is None else f"{row.kept:9.2%}{row.regret:10.1e}"
        print(f"{name:40}{cells}{right}")
    worst = found["our kernels"].regret
    if worst is None or not worst <= EXACT:
        raise SystemExit(f"our kernels' lists are {worst} below the best, {EXACT} is what rounding may cost")


if __name__ == "__main__":
    main()
