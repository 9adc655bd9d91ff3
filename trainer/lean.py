"""The served graph, laid node by node: what `Scorer` answers, with less work. In full, int8 or half precision.

What it saves, none of which changes an answer:
    only events are computed, not the empty slots before them; attention begins at the longest history of the batch
    in the last block, where one place asks, keys and values are never made: the question goes to them through the
    matrices, and what comes back is one mixed vector a head
    one item table, read both by those who look items up and by the score; unavailable items are masked in the bias
    scores are masked where they lie, and of many only the blocks with the best ones are looked through (lean_rank.py)

With int8, matrices and item rows have one scale for each output, what is multiplied with them one fixed scale that was
observed beforehand (see quantize.py): a user's list does not depend on who else is in the batch.

Shape suffixes: N events of all users, T slots of the longest history, else as in network.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor

from schemas.features import COUNTER_NAMES
from schemas.release import OUTPUT_INDEX, OUTPUT_SCORE
from trainer.lean_nodes import EXTRA, Array, Nodes
from trainer.lean_rank import block_width, put, rank
from trainer.network import Attention, Block, Network

# As good as -inf under a softmax, twice over still a number in half precision.
FAR = -3e4
# Of an int8 weight, on either side of 0. Where it is multiplied as such, half of them: a CPU without VNNI adds two
# products with activations of up to 255 in 16 bits, and with more levels the sums would stop at 32767, on it alone.
LEVELS, MULTIPLIED_LEVELS = 127, 63


@dataclass(frozen=True)
class Range:
    """The least and the greatest value that was seen at one place of the graph; 0 lies between them."""

    low: float
    high: float


def lay(
    network: Network, top_k: int, ranges: Sequence[Range] | None = None, half: bool = False
) -> tuple[onnx.ModelProto, list[str]]:
    """The graph of a network, and the names of the values whose ranges int8 needs, in their order.

    ranges: of those values, makes it an int8 graph. half: float16 throughout, for GPUs; slots are not left out there,
    where finding them costs more than computing them.
    """
    graph = _Lean(network, ranges, half)
    return graph.lay(top_k), graph.watched


def int8_rows(rows: Tensor, levels: int = MULTIPLIED_LEVELS) -> tuple[Array, Array]:
    """Rows float[R, C] as int8[R, C] and one scale float32[R] each: rows ≈ int8 · scale."""
    scale = (rows.abs().amax(dim=1) / levels).clamp(min=torch.finfo(torch.float32).tiny)
    return (rows / scale[:, None]).round().to(torch.int8).numpy(), scale.float().numpy()


class _Lean(Nodes):
    """Lays the nodes of a network."""

    def __init__(self, network: Network, ranges: Sequence[Range] | None, half: bool) -> None:
        super().__init__(half)
        self.network = network.cpu().eval()
        self.watched: list[str] = []
        self._ranges = ranges
        self._packed = not half

    # ── pieces ───────────────────────────────────────────────────────────────────────────────────

    def linear(self, x: str, weight: Tensor, bias: Tensor) -> str:
        """X [M, in] → [M, out]; weight [out, in], a matrix worth quantising."""
        self.watched.append(x)
        if self._ranges is None:
            return self.op("Gemm", x, self.floats(weight), self.floats(bias), transB=1)
        rows, scale = int8_rows(weight)
        return self._int8_product(x, self.constant(rows.T), self.constant(scale), self.floats(bias))

    def small(self, x: str, layer: torch.nn.Linear) -> str:
        """The same for a layer too small to be worth it."""
        return self.op("Gemm", x, self.floats(layer.weight), self.floats(layer.bias), transB=1)

    def _int8_product(self, x: str, matrix: str, scale: str, bias: str) -> str:
        assert self._ranges is not None
        seen = self._ranges[len(self.watched) - 1]
        step = np.float32(max((seen.high - seen.low) / 255, float(np.finfo(np.float32).tiny)))
        zero = np.uint8(np.clip(np.round(-seen.low / step), 0, 255))
        step_name, zero_name = self.constant(np.array(step)), self.constant(np.array(zero))
        rounded = self.op("QuantizeLinear", x, step_name, zero_name)
        return self.op(
            "MatMulIntegerToFloat", rounded, matrix, step_name, scale, zero_name, "", bias, domain=EXTRA
        )  # fmt: skip

    def matrix(self, rows: Tensor) -> str:
        """Rows [R, C] that are read as floats, but lie as int8 in an int8 graph."""
        if self._ranges is None:
            return self.floats(rows)
        whole, scale = int8_rows(rows.detach(), LEVELS)
        return self.op("DequantizeLinear", self.constant(whole), self.constant(scale), axis=0)

    def norm(self, x: str, layer: torch.nn.LayerNorm, times: Tensor | float = 1.0) -> str:
        weight, bias = self.floats(layer.weight * times), self.floats(layer.bias * times)
        return self.op("LayerNormalization", x, weight, bias, epsilon=layer.eps)

    def slots(self, values: str) -> str:
        """[B, L] → [B, T], the newest ones."""
        return self.op("Slice", values, self._begin, self.ints(self._length), self.ints(1))

    def in_slots(self, values: str, *shape: int) -> str:
        """Values [N, …] of the events → [B, T, *shape]; empty slots hold the values of any event."""
        return self.op("Reshape", self.op("Gather", values, self._event_of_slot), self.shaped(*shape))

    def shaped(self, *shape: int) -> str:
        return self.op("Concat", self._users_slots, self.ints(*shape), axis=0)

    # ── the whole ────────────────────────────────────────────────────────────────────────────────

    def lay(self, top_k: int) -> onnx.ModelProto:
        network = self.network
        self._length = network.config.history
        width = block_width(network.config.items, top_k)
        self._filling = -(network.config.items + 1) % width
        self._find_events()
        with torch.no_grad():
            table = F.pad(network.table(), (0, 0, 0, self._filling))
            x = self._begin_with(table)
            *earlier, last = network.blocks
            for block in earlier:
                assert isinstance(block, Block)
                x = self._block(x, block)
            assert isinstance(last, Block)
            user = self._last_block(x, last)
            counted = self.small(self.number("counters"), network.counters)
            user = self.norm(self.op("Add", user, counted), network.final_norm, network.sharpness)
            rank(self, network, self._score(user), top_k, width, rounded=self._ranges is not None)
        return self._model(top_k)

    def _find_events(self) -> None:
        """Which slots hold events, where the longest history begins, and where each event lies."""
        real = self.op("Greater", "action", self.ints(0))
        # The newest slot counts in any case: a user without events is somebody, too.
        newest = np.arange(self._length)[None] == self._length - 1
        real = self.op("Or", real, self.constant(newest))
        if self._packed:
            anyone = self.op("ReduceMax", self.op("Cast", real, to=TensorProto.INT32), self.ints(0), keepdims=0)
            self._begin = self.op("ArgMax", anyone, axis=0, keepdims=1)
        else:
            self._begin = self.ints(0)
        real = self.slots(real)
        self._users_slots = self.op("Shape", real)
        flat = self.op("Reshape", real, self.ints(-1))
        self._pad = self.op(
            "Unsqueeze", self.op("Where", real, self.floats(0.0), self.floats(FAR)), self.ints(1)
        )  # fmt: skip
        if self._packed:
            self._place = self.op("Reshape", self.op("NonZero", flat), self.ints(-1))
            running = self.op("CumSum", self.op("Cast", flat, to=TensorProto.INT64), self.ints(0))
            # Before the first event of all the sum is 0: any event will do for an empty slot.
            self._event_of_slot = self.op("Max", self.op("Sub", running, self.ints(1)), self.ints(0))
        else:
            count = self.op("ReduceProd", self._users_slots, keepdims=1)
            scalar = [self.op("Squeeze", value) for value in (self.ints(0), count, self.ints(1))]
            self._place = self._event_of_slot = self.op("Range", *scalar)
        slots_2d = self.op("Reshape", self._event_of_slot, self._users_slots)
        self._newest = self.op("Gather", slots_2d, self.constant(np.array(-1, np.int64)), axis=1)

    def _of_events(self, name: str) -> str:
        return self.op("Gather", self.op("Reshape", self.slots(name), self.ints(-1)), self._place)

    def _begin_with(self, table: Tensor) -> str:
        """[N, D]: item, action and gap of each event."""
        item = self._of_events("item_index")
        if self._ranges is None:
            self._table = self.floats(table)
            x = self.op("Gather", self._table, item)
        else:
            rows, scale = int8_rows(table)
            self._table, self._table_scale = self.constant(rows), self.constant(scale)
            taken = self.number(self.op("Gather", self._table, item))
            x = self.op(
                "Mul", taken, self.op("Unsqueeze", self.op("Gather", self._table_scale, item), self.ints(1))
            )  # fmt: skip
        for name, embedding in (("action", self.network.action), ("gap", self.network.gap)):
            x = self.op("Add", x, self.op("Gather", self.floats(embedding.weight), self._of_events(name)))
        return x

    def _block(self, x: str, block: Block) -> str:
        """A block in which every event asks: [N, D] → [N, D]."""
        attention, config = block.attention, self.network.config
        heads, inner = config.heads, config.heads * config.one_head
        normed = self.norm(x, block.attention_norm)
        scale = config.one_head**-0.5
        weight = torch.cat((attention.query.weight * scale, attention.key_value.weight, block.attention_gate.weight))
        bias = torch.cat((attention.query.bias * scale, attention.key_value.bias, block.attention_gate.bias))
        made = self.linear(normed, weight, bias)
        sizes = self.ints(inner, inner, inner, config.width)
        query, key, value, gate = self.ops("Split", 4, made, sizes, axis=1)
        by_head = [
            self.op("Transpose", self.in_slots(part, heads, config.one_head), perm=order)
            for part, order in ((query, [0, 2, 1, 3]), (key, [0, 2, 3, 1]), (value, [0, 2, 1, 3]))
        ]
        scores = self.op("MatMul", by_head[0], by_head[1])
        scores = self.op("Add", scores, self._by_distance(attention))
        scores = self.op("Add", scores, self.op("Unsqueeze", self._pad, self.ints(1)))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), by_head[2])
        mixed = self.op("Reshape", self.op("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(-1, inner))
        if self._packed:
            mixed = self.op("Gather", mixed, self._place)
        attended = self.linear(mixed, attention.output.weight, attention.output.bias)
        x = self.op("Add", x, self.op("Mul", self.op("Sigmoid", gate), attended))
        return self._feed(x, block)

    def _by_distance(self, attention: Attention) -> str:
        """[H, T, T]: the bias of every distance, FAR for what is yet to come. Known when the graph is opened."""
        steps = np.arange(self._length)
        back = self.op("Sub", self.constant(steps[:, None]), self.constant(steps[None]))
        bias = self.op("Gather", self.floats(attention.distance_bias), self.op("Max", back, self.ints(0)), axis=1)
        bias = self.op("Where", self.op("Less", back, self.ints(0)), self.floats(FAR), bias)
        begin = self.op("Concat", self._begin, self._begin, axis=0)
        return self.op("Slice", bias, begin, self.ints(self._length, self._length), self.ints(1, 2))

    def _last_block(self, x: str, block: Block) -> str:
        """A block in which the newest event asks alone: [N, D] → [B, D]."""
        attention, config = block.attention, self.network.config
        heads, width, one_head = config.heads, config.width, config.one_head
        inner = heads * one_head
        normed = self.norm(x, block.attention_norm)
        scale = one_head**-0.5
        made = self.linear(
            self.op("Gather", normed, self._newest),
            torch.cat((attention.query.weight * scale, block.attention_gate.weight)),
            torch.cat((attention.query.bias * scale, block.attention_gate.bias)),
        )
        query, gate = self.ops("Split", 2, made, self.ints(inner, width), axis=1)
        key_weight, value_weight = attention.key_value.weight.chunk(2)
        value_bias = attention.key_value.bias.chunk(2)[1]
        # What a key adds to every score alike, its bias, is nothing to the softmax.
        keys = self.op("Reshape", self.matrix(key_weight), self.ints(heads, one_head, width))
        asked = self._to_heads(query, one_head)
        asked = self.op("Transpose", self.op("MatMul", asked, keys), perm=[1, 0, 2])
        events = self.in_slots(normed, width)
        scores = self.op("MatMul", asked, self.op("Transpose", events, perm=[0, 2, 1]))
        scores = self.op("Add", scores, self._by_age(attention))
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), events)
        mixed = self.op("Transpose", mixed, perm=[1, 0, 2])
        values = self.op("Reshape", self.matrix(value_weight), self.ints(heads, one_head, width))
        mixed = self.op("MatMul", mixed, self.op("Transpose", values, perm=[0, 2, 1]))
        mixed = self.op("Reshape", self.op("Transpose", mixed, perm=[1, 0, 2]), self.ints(-1, inner))
        mixed = self.op("Add", mixed, self.floats(value_bias))
        attended = self.linear(mixed, attention.output.weight, attention.output.bias)
        x = self.op("Gather", x, self._newest)
        x = self.op("Add", x, self.op("Mul", self.op("Sigmoid", gate), attended))
        return self._feed(x, block)

    def _to_heads(self, x: str, one_head: int) -> str:
        """[B, H · dh] → [H, B, dh]."""
        split = self.op("Reshape", x, self.ints(0, -1, one_head))
        return self.op("Transpose", split, perm=[1, 0, 2])

    def _by_age(self, attention: Attention) -> str:
        """[B, H, T]: the biases of distance, of age, and of empty slots."""
        back = self.floats(attention.distance_bias.flip(1))
        back = self.op("Slice", back, self._begin, self.ints(self._length), self.ints(1))
        bias = self.op("Add", back, self._pad)
        if attention.age_bias is None:
            return bias
        by_age = self.op("Gather", self.floats(attention.age_bias), self.slots("age"))
        return self.op("Add", bias, self.op("Transpose", by_age, perm=[0, 2, 1]))

    def _feed(self, x: str, block: Block) -> str:
        config = self.network.config
        normed = self.norm(x, block.feed_norm)
        weight = torch.cat((block.feed_in.weight, block.feed_gate.weight))
        bias = torch.cat((block.feed_in.bias, block.feed_gate.bias))
        made = self.linear(normed, weight, bias)
        sizes = self.ints(config.feed_width, config.feed_width, config.width)
        gate, value, how_much = self.ops("Split", 3, made, sizes, axis=1)
        inside = self.op("Mul", self.op("Mul", gate, self.op("Sigmoid", gate)), value)
        fed = self.linear(inside, block.feed_out.weight, block.feed_out.bias)
        return self.op("Add", x, self.op("Mul", self.op("Sigmoid", how_much), fed))

    def _score(self, user: str) -> str:
        """[B, C], C as in lean_rank.py; what cannot be recommended has -inf."""
        shown = self.network.served_bias()
        shown[0] = float("-inf")
        shown = F.pad(shown, (0, self._filling))
        available = "available"
        if self._filling:
            available = self.op("Concat", available, self.constant(np.zeros(self._filling, np.bool_)), axis=0)
        bias = self.op("Where", available, self.floats(shown), self.floats(float("-inf")))
        self.watched.append(user)
        if self._ranges is None:
            score = self.op("Gemm", user, self._table, bias, transB=1)
        else:
            columns = self.op("Transpose", self._table, perm=[1, 0])
            score = self._int8_product(user, columns, self._table_scale, bias)
        if not self._packed:
            # From here on scores are compared, and differ by little: half precision would make equals of them.
            score = self.op("Cast", score, to=TensorProto.FLOAT)
        # Without this what the user had is masked in a copy of all scores.
        self.shape_is(score, "batch", len(shown))
        had = self.slots("item_index")
        return put(self, score, had, self.op("Expand", self.single(-np.inf), self._users_slots))

    def _model(self, top_k: int) -> onnx.ModelProto:
        length, items = self._length, self.network.config.items
        integers = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
            for name in ("item_index", "action", "gap", "age")
        ]
        counters = helper.make_tensor_value_info("counters", TensorProto.FLOAT, ["batch", len(COUNTER_NAMES)])
        available = helper.make_tensor_value_info("available", TensorProto.BOOL, [items + 1])
        outputs = [
            helper.make_tensor_value_info(OUTPUT_INDEX, TensorProto.INT64, ["batch", top_k]),
            helper.make_tensor_value_info(OUTPUT_SCORE, TensorProto.FLOAT, ["batch", top_k]),
        ]
        return self.made([*integers, counters, available], outputs)
