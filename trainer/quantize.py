"""What int8 needs to know beforehand: between which values the activations of a network lie.

Observed on real histories, so that every batch is rounded alike; a maximum taken from each batch as it comes would
let one unusual user coarsen the lists of all others in it.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from trainer.export import graph_feed
from trainer.lean import Range, lay
from trainer.network import Network
from trainer.sequences import Histories, Ints, evenly

# Histories observed: enough that one more hardly moves a range.
OBSERVED = 1024
# Rarer values are cut off: the steps between all others become finer for it.
KEPT_SHARE = 0.9999
# Neighbours of an item that memory keeps: what takes one byte a dimension elsewhere would take most room here.
KEPT_NEIGHBOURS = 20


def observed_ranges(network: Network, histories: Histories, newest: Ints, threads: int) -> list[Range]:
    """The ranges that `lay` asks for, over windows with these newest events (evenly OBSERVED of them)."""
    graph, watched = lay(network, top_k=1)
    for name in watched:
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = graph_feed(histories, evenly(newest, OBSERVED), np.ones(network.config.items + 1, np.bool_))
    return [_range(values) for values in session.run(watched, feed)]


def _range(values: NDArray[Any]) -> Range:
    low, high = np.quantile(values, (1 - KEPT_SHARE, KEPT_SHARE))
    # Padding, and the far side of a gate, is 0 exactly and shall stay so.
    return Range(min(0.0, float(low)), max(0.0, float(high)))


def with_fewer_neighbours(network: Network) -> Network:
    """The network with the KEPT_NEIGHBOURS strongest neighbours of each item in its memory."""
    small = copy.deepcopy(network)
    small.neighbour_VM = network.neighbour_VM[:, :KEPT_NEIGHBOURS].contiguous()
    small.strength_VM = network.strength_VM[:, :KEPT_NEIGHBOURS].contiguous()
    return small
