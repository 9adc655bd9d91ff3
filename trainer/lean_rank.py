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
        mixture = _mixture(nodes, network, score, rounded)
        top, index = best(nodes, network.config.items, mixture, top_k, width)
        listed = nodes.op("Greater", top, nodes.single(0.0))
        top = nodes.op("Where", listed, nodes.op("Log", top), nodes.single(-np.inf))
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
    columns = nodes.ints(width)
    blocks = nodes.op("Reshape", values, nodes.ints(0, -1, width))
    maxima = nodes.op("ReduceMax", blocks, nodes.ints(2), keepdims=0)
    _, best = nodes.ops("TopK", 2, maxima, count, axis=1)
    within = nodes.op("GatherND", blocks, nodes.op("Unsqueeze", best, nodes.ints(2)), batch_dims=1)
    top, place = nodes.ops("TopK", 2, nodes.op("Reshape", within, nodes.ints(0, -1)), count, axis=1)
    nth = nodes.op("Div", place, columns)
    # From the nth of the best blocks to its own place among all.
    moved = nodes.op("Sub", nodes.op("GatherElements", best, nth, axis=1), nth)
    column = nodes.op("Add", place, nodes.op("Mul", moved, columns))
    # Behind the last item to be had comes any column, but one that is an item's.
    return top, nodes.op("Min", column, nodes.ints(items))


def _mixture(nodes: Nodes, network: Network, score: str, rounded: bool) -> str:
    """Probabilities [B, C] with what the newest items remember; see Network.mixture."""
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
    expected = nodes.op("Softmax", score, axis=1)
    return nodes.op("ScatterElements", expected, where, strength, axis=1, reduction="add")


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
