"""The end of the lean graph: from scores [B, C] to lists, memory mixed in; what `Scorer` does after its product.

C columns: items 0 … V, then as many as fill the last block, which nobody may be shown. What may not be listed is -inf.
"""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto

from schemas.release import OUTPUT_INDEX, OUTPUT_SCORE
from trainer.lean_nodes import Nodes
from trainer.network import MEMORIES, NEWEST, Network

# Below every score but -inf.
NEVER = -1e30
# Columns of one block; half as many take as long.
BLOCK = 64
# With fewer blocks than this times a list is long, looking for the best ones saves nothing.
LEAST_BLOCKS = 4


def block_width(items: int, top_k: int) -> int:
    """Columns of a block, 1 where lists of so many items are best found without blocks."""
    return BLOCK if items >= LEAST_BLOCKS * top_k * BLOCK else 1


def rank(nodes: Nodes, network: Network, score: str, top_k: int, width: int, rounded: bool) -> None:
    """Lay the outputs top_index and top_score. width: as block_width. rounded: memory in one byte a strength."""
    if not network.remembering():
        top, index = best(nodes, network.config.items, score, top_k, width)
    else:
        mixture, whole = _mixture(nodes, network, score, rounded)
        top, index = best(nodes, network.config.items, mixture, top_k, width)
        listed = nodes.op("Greater", top, nodes.single(0.0))
        share = top if whole is None else nodes.op("Div", top, whole)
        top = nodes.op("Where", listed, nodes.op("Log", share), nodes.single(-np.inf))
    nodes.output(OUTPUT_SCORE, top)
    nodes.output(OUTPUT_INDEX, index)


def best(nodes: Nodes, items: int, values: str, top_k: int, width: int) -> tuple[str, str]:
    """The K greatest of each row and their columns, the greatest first: [B, K] each. items: the last column to be had.

    In blocks: the K blocks with the greatest maxima hold the K greatest values, for a value outside of them is no
    greater than its block's maximum, and so than K values, those K maxima. Only they are looked through. (A maximum
    is taken of many columns at a time, TopK goes through them one by one.)
    """
    count = nodes.ints(top_k)
    if width == 1:
        top, column = nodes.ops("TopK", 2, values, count, axis=1)
        return top, column
    if nodes.half:
        within, columns = _scattered_blocks(nodes, items, values, count, width)
        top, place = nodes.ops("TopK", 2, within, count, axis=1)
        column = nodes.op("GatherElements", columns, place, axis=1)
    else:
        blocks = nodes.op("Reshape", values, nodes.ints(0, -1, width))
        maxima = nodes.op("ReduceMax", blocks, nodes.ints(2), keepdims=0)
        _, best = nodes.ops("TopK", 2, maxima, count, axis=1)
        within = nodes.op("GatherND", blocks, nodes.op("Unsqueeze", best, nodes.ints(2)), batch_dims=1)
        top, place = nodes.ops("TopK", 2, nodes.op("Reshape", within, nodes.ints(0, -1)), count, axis=1)
        columns = nodes.ints(width)
        nth = nodes.op("Div", place, columns)
        # From the nth of the best blocks to its own place among all.
        moved = nodes.op("Sub", nodes.op("GatherElements", best, nth, axis=1), nth)
        column = nodes.op("Add", place, nodes.op("Mul", moved, columns))
    # Behind the last item to be had comes any column, but one that is an item's.
    return top, nodes.op("Min", column, nodes.ints(items))


def _scattered_blocks(nodes: Nodes, items: int, values: str, count: str, width: int) -> tuple[str, str]:
    """All values of the K best blocks, and their columns: [B, K · width] each.

    On a GPU, where threads beside each other read columns beside each other, a block is every so-many-th column, and
    its maximum a pooling's: 0.34 ms for 128 users of a million items on an H200, of neighbours by ReduceMax 1.22.
    """
    blocks = -(-(items + 1) // width)
    apart = nodes.op("Reshape", values, nodes.ints(0, 1, width, blocks))
    maxima = nodes.op("MaxPool", apart, kernel_shape=[width, 1], strides=[width, 1])
    _, best = nodes.ops("TopK", 2, nodes.op("Reshape", maxima, nodes.ints(0, blocks)), count, axis=1)
    steps = nodes.constant(np.arange(width, dtype=np.int64)[None, None] * blocks)
    columns = nodes.op("Add", nodes.op("Unsqueeze", best, nodes.ints(2)), steps)
    columns = nodes.op("Reshape", columns, nodes.ints(0, -1))
    return nodes.op("GatherElements", values, columns, axis=1), columns


def put(nodes: Nodes, values: str, columns: str, put_in: str, reduction: str = "none") -> str:
    """Values [B, C] with others put in, or added, at columns int64[B, N].

    On a GPU ScatterND writes where the values lie, ScatterElements into a copy of them; on a CPU both may do so.
    """
    if not nodes.half:
        return nodes.op("ScatterElements", values, columns, put_in, axis=1, reduction=reduction)
    shape = nodes.op("Shape", columns)
    users = nodes.op("Squeeze", nodes.op("Slice", shape, nodes.ints(0), nodes.ints(1)))
    rows = nodes.op("Range", nodes.constant(np.array(0, np.int64)), users, nodes.constant(np.array(1, np.int64)))
    rows = nodes.op("Expand", nodes.op("Unsqueeze", rows, nodes.ints(1)), shape)
    last = nodes.ints(2)
    places = nodes.op("Concat", nodes.op("Unsqueeze", rows, last), nodes.op("Unsqueeze", columns, last), axis=2)
    return nodes.op("ScatterND", values, places, put_in, reduction=reduction)


def _mixture(nodes: Nodes, network: Network, score: str, rounded: bool) -> tuple[str, str | None]:
    """Probabilities [B, C] with what the newest items remember; see Network.mixture.

    On a GPU they are so many times as large as they add up to, [B, 1]; a softmax goes through all of them four times.
    No float32 holds e^89: a network with such scores, far beyond any fit's, answers its warm-up with no numbers there,
    and is refused.
    """
    length = network.config.history
    count = min(NEWEST, length)
    of_newest, of_others = network.blend[-MEMORIES:].tolist()
    # From the oldest to the newest.
    weights = torch.tensor([of_others / place for place in range(count, 1, -1)] + [of_newest])
    newest = nodes.op("Slice", "item_index", nodes.ints(length - count), nodes.ints(length), nodes.ints(1))
    few = np.uint16 if network.config.items < 2**16 else np.int32
    neighbour = nodes.op("Gather", nodes.constant(network.neighbour_VM.numpy().astype(few)), newest)
    where = nodes.op("Reshape", nodes.op("Cast", neighbour, to=TensorProto.INT64), nodes.ints(0, -1))
    strength = nodes.op("Mul", _strengths(nodes, network, newest, rounded), nodes.constant(weights[:, None].numpy()))
    # What is masked stays so: its score is -inf, and the least that counts is far above.
    listed = nodes.op("Greater", nodes.op("GatherElements", score, where, axis=1), nodes.single(NEVER))
    strength = nodes.op(
        "Mul", nodes.op("Reshape", strength, nodes.ints(0, -1)), nodes.op("Cast", listed, to=TensorProto.FLOAT)
    )  # fmt: skip
    whole = None
    if nodes.half:
        expected = nodes.op("Exp", score)
        whole = nodes.op("ReduceSum", expected, nodes.ints(1), keepdims=1)
        strength = nodes.op("Mul", strength, whole)
    else:
        expected = nodes.op("Softmax", score, axis=1)
    return put(nodes, expected, where, strength, "add"), whole


def _strengths(nodes: Nodes, network: Network, item: str, rounded: bool) -> str:
    """How strongly the items' neighbours are remembered: float32[B, P, M].

    In an int8 graph their square roots lie in steps of a 255th: most are small.
    """
    strength = network.strength_VM
    if not rounded:
        return nodes.op("Cast", nodes.op("Gather", nodes.floats(strength), item), to=TensorProto.FLOAT)
    step = max(float(strength.max().sqrt()) / 255, float(np.finfo(np.float32).tiny) ** 0.5)
    roots = (strength.sqrt() / step).round().numpy().astype(np.uint8)
    root = nodes.op("Cast", nodes.op("Gather", nodes.constant(roots), item), to=TensorProto.FLOAT)
    root = nodes.op("Mul", root, nodes.single(step))
    return nodes.op("Mul", root, root)
