"""Releases made by hand: real folders with real ONNX graphs whose answers anyone can work out on paper.

The graph gives each item a fixed score, best first in `favourites`, and adds to all of a user's scores one number made
of everything the user's state holds (see BONUS below). So a row tells which release it is of, which items the user had,
and, to a ten-thousandth, what the job believes of the user.
"""

import hashlib
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.features import COUNTER_NAMES
from schemas.recommendation import LIST_LENGTH
from schemas.release import MANIFEST, FileDigest, Manifest, ModelRelease
from schemas.user_state import HISTORY

# Distance between two neighbours in the order of favourites; far above what the bonus can blur.
STEP = 1.0
# bonus = Σ action · ACTION_WEIGHT + Σ gap · GAP_WEIGHT + Σ counter[i] · COUNTER_WEIGHTS[i]
ACTION_WEIGHT = 0.01
GAP_WEIGHT = 0.003
COUNTER_WEIGHTS = np.arange(1, len(COUNTER_NAMES) + 1, dtype=np.float32) * np.float32(0.02)
INPUTS = ["item_index", "action", "gap", "counters", "available"]
Arrays = dict[str, NDArray[np.generic]]


def make_release(
    folder: Path,
    item_ids: Sequence[str],
    favourites: Sequence[str],
    version: str = "20260101-000000",
    **overrides: bytes,
) -> ModelRelease:
    """Write a release to `folder` and return its announcement.

    overrides: contents that replace a file (model, items, warmup) before the digests are taken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = make_graph(item_ids, favourites)
    inputs, outputs = make_warmup(graph, len(item_ids))
    contents = {
        "model.onnx": overrides.get("model", graph),
        "items": overrides.get("items", "\n".join([*item_ids, ""]).encode()),
        "warmup": overrides.get("warmup", _npz({**inputs, **outputs})),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    manifest = Manifest(
        version=version,
        created_at=1,
        parent=None,
        history=HISTORY,
        top_k=min(len(item_ids), LIST_LENGTH),
        item_count=len(item_ids),
        inputs=INPUTS,
        files={
            name: FileDigest(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
            for name, content in contents.items()
        },
        metrics={},
        trained_on={},
    )
    raw = manifest.model_dump_json().encode()
    (folder / MANIFEST).write_bytes(raw)
    return ModelRelease(
        version=version,
        uri=folder.as_uri(),
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
        published_at=int(time.time() * 1000),
    )


def base_scores(item_ids: Sequence[str], favourites: Sequence[str]) -> NDArray[np.float32]:
    """Scores of index 0 … V without a user's bonus; items that are no favourites score below all that are."""
    order = [*favourites, *(item for item in item_ids if item not in set(favourites))]
    place = {item: rank for rank, item in enumerate(order)}
    scores = [0.0] + [STEP * (len(order) - place[item]) for item in item_ids]
    return np.array(scores, np.float32)


def make_graph(item_ids: Sequence[str], favourites: Sequence[str]) -> bytes:
    """The ONNX graph as bytes."""
    count = len(item_ids)
    top = min(count, LIST_LENGTH)
    nodes = [
        # One row of scores for every user: base + bonus.
        helper.make_node("Cast", ["action"], ["action_f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["action_f", "axis1"], ["action_sum"], keepdims=1),
        helper.make_node("Mul", ["action_sum", "action_weight"], ["action_bonus"]),
        helper.make_node("Cast", ["gap"], ["gap_f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["gap_f", "axis1"], ["gap_sum"], keepdims=1),
        helper.make_node("Mul", ["gap_sum", "gap_weight"], ["gap_bonus"]),
        helper.make_node("MatMul", ["counters", "counter_weights"], ["counter_bonus"]),
        helper.make_node("Sum", ["action_bonus", "gap_bonus", "counter_bonus"], ["bonus"]),
        helper.make_node("Add", ["bonus", "base"], ["raw"]),
        # Items that may not be shown, index 0 and the user's own items go to -inf.
        helper.make_node("Where", ["available", "zero", "minus_inf"], ["closed"]),
        helper.make_node("Add", ["raw", "closed"], ["open"]),
        helper.make_node("Shape", ["item_index"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["minus_infs"], value=_tensor([-np.inf], np.float32)),
        helper.make_node("ScatterElements", ["open", "item_index", "minus_infs"], ["unseen"], axis=1),
        helper.make_node("Add", ["unseen", "padding"], ["scores"]),
        helper.make_node("TopK", ["scores", "k"], ["top_score", "top_index"], axis=1, largest=1, sorted=1),
    ]
    constants: dict[str, NDArray[Any]] = {
        "axis1": np.array([1], np.int64),
        "action_weight": np.array(ACTION_WEIGHT, np.float32),
        "gap_weight": np.array(GAP_WEIGHT, np.float32),
        "counter_weights": COUNTER_WEIGHTS[:, None],
        "base": base_scores(item_ids, favourites)[None, :],
        "zero": np.array(0, np.float32),
        "minus_inf": np.array(-np.inf, np.float32),
        "padding": np.array([[-np.inf] + [0.0] * count], np.float32),
        "k": np.array([top], np.int64),
    }
    whole, real = TensorProto.INT64, TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info(name, whole, ["B", HISTORY]) for name in INPUTS[:3]]
    inputs.append(helper.make_tensor_value_info("counters", real, ["B", len(COUNTER_NAMES)]))
    inputs.append(helper.make_tensor_value_info("available", TensorProto.BOOL, [count + 1]))
    outputs = [
        helper.make_tensor_value_info("top_index", whole, ["B", top]),
        helper.make_tensor_value_info("top_score", real, ["B", top]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "favourites", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def make_warmup(graph: bytes, item_count: int, users: int = 3) -> tuple[Arrays, Arrays]:
    """Inputs of a few users with one item each, and what the graph answers."""
    import onnxruntime

    inputs: Arrays = {name: np.zeros((users, HISTORY), np.int64) for name in INPUTS[:3]}
    inputs["item_index"][:, -1] = np.arange(users) % item_count + 1
    inputs["counters"] = np.zeros((users, len(COUNTER_NAMES)), np.float32)
    inputs["available"] = np.ones(item_count + 1, np.bool_)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    index, score = session.run(["top_index", "top_score"], inputs)
    return inputs, {"top_index": index, "top_score": score}


def _npz(arrays: Arrays) -> bytes:
    out = BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def _tensor(values: list[float], dtype: type[np.generic]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), "value")
