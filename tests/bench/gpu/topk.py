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
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from tests.bench.figures import Spread, ratio, spread
from tests.bench.gpu.fused import FusedTopK, Shape
from tests.bench.gpu.topk_question import Question, Sizes, judged, question, truth
from tests.bench.gpu.topk_ways import Way, opened, ranking, runtime_ways, torch_ways, whole_graph

# Rounds in which all ways take turns, and calls of one way in a round; an interpreter is too slow for more than one.
ROUNDS, CALLS = (5, 20) if torch.cuda.is_available() else (1, 1)
# More than twice the largest cache of a GPU.
CACHE_BYTES = 2**28
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


@dataclass
class Found:
    """Of one way: times, the share of float64's lists it found, how far below the best it is at worst."""

    device_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    kept: float | None = None
    regret: float | None = None


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
