"""Ways to the best items: PyTorch, and ONNX Runtime with the end of the lean graph or the whole of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from schemas.features import COUNTER_NAMES, GAP_BUCKETS
from schemas.release import OUTPUT_INDEX, OUTPUT_SCORE
from tests.bench.gpu.topk_question import Question, Sizes
from trainer.lean import lay
from trainer.lean_nodes import Nodes
from trainer.lean_rank import best, put
from trainer.network import Network
from trainer.recipe import NetworkConfig

CUDA = "CUDAExecutionProvider"
# Called without anything; index and score int64[B, K] and float[B, K], where they are.
Way = Callable[[], tuple[Any, Any]]


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
    score = put(nodes, score, "item_index", nothing)
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
