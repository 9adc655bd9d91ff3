"""Nodes of an ONNX graph, laid one after the other by whoever knows what they are for.

Every method that lays returns the name of its value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

Array = NDArray[Any]

OPSET, IR = 18, 9
EXTRA = "com.microsoft"  # ONNX Runtime's own operators


class Nodes:
    """The nodes and constants laid so far. `half`: its floats have 16 bits instead of 32."""

    def __init__(self, half: bool) -> None:
        self.half = half
        self._float = np.float16 if half else np.float32
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[bytes, str, tuple[int, ...]], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._shaped: list[onnx.ValueInfoProto] = []

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        [output] = self.ops(kind, 1, *inputs, domain=domain, **attributes)
        return output

    def ops(self, kind: str, count: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        outputs = [f"{kind.lower()}_{len(self._nodes)}" + (f"_{n}" if n else "") for n in range(count)]
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, domain=domain, **attributes))
        return outputs

    def constant(self, values: Array) -> str:
        """Equal ones are stored once."""
        key = (values.tobytes(), str(values.dtype), values.shape)
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = name
            self._initializers.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return self._constants[key]

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def floats(self, values: Tensor | float) -> str:
        array = values.detach().numpy() if isinstance(values, Tensor) else np.array(values)
        return self.constant(array.astype(self._float))

    def number(self, value: str) -> str:
        """Cast to the graph's own float."""
        return self.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(self._float)))

    def single(self, value: float) -> str:
        """A float32 whatever the graph's own float is."""
        return self.constant(np.array(value, np.float32))

    def output(self, name: str, value: str) -> None:
        """Let a value be known by this name."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))

    def shape_is(self, value: str, *shape: str | int) -> None:
        """Tell of float32 values what shape they have, where ONNX Runtime cannot find out: it reuses their memory."""
        self._shaped.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, shape))

    def made(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """The whole as a model."""
        graph = helper.make_graph(
            self._nodes, "freshrec", inputs, outputs, self._initializers, value_info=self._shaped
        )  # fmt: skip
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(EXTRA, 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=IR, producer_name="freshrec")
