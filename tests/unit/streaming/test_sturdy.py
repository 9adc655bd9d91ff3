"""Graphs that fail in ONNX Runtime itself, for some users or on one provider: everybody else is served."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from schemas.release import OUTPUT_INDEX, OUTPUT_SCORE
from streaming.sturdy import CPU, Sturdy

TOP = 3
OUTPUTS = [OUTPUT_INDEX, OUTPUT_SCORE]


def graph(most: int = 0) -> bytes:
    """Scores user u's items by a table with 5 rows: a larger u makes Gather fail. most: a larger batch fails, too."""
    nodes = [
        helper.make_node("Gather", ["table", "user"], ["scores"], axis=0),
        helper.make_node("TopK", ["scores", "k"], [OUTPUT_SCORE, OUTPUT_INDEX], axis=1),
    ]
    constants: dict[str, NDArray[Any]] = {
        "table": np.arange(20, dtype=np.float32).reshape(5, 4),
        "k": np.array([TOP], np.int64),
    }
    if most:
        nodes += [
            helper.make_node("Shape", ["user"], ["count"]),
            helper.make_node("Gather", ["allowed", "count"], ["checked"], axis=0),
        ]
        constants["allowed"] = np.zeros(most + 1, np.float32)
    outputs = [
        helper.make_tensor_value_info(OUTPUT_INDEX, TensorProto.INT64, ["B", TOP]),
        helper.make_tensor_value_info(OUTPUT_SCORE, TensorProto.FLOAT, ["B", TOP]),
        *([helper.make_tensor_value_info("checked", TensorProto.FLOAT, [1])] if most else []),
    ]
    inputs = [helper.make_tensor_value_info("user", TensorProto.INT64, ["B"])]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_graph(nodes, "table", inputs, outputs, initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


class Watched:
    """A real session, with the sizes of the runs that were asked of it, under a provider's name."""

    def __init__(self, content: bytes, provider: str = CPU) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(content, options, providers=[CPU])
        self._provider = provider
        self.sizes: list[int] = []

    def get_providers(self) -> list[str]:
        return [self._provider, CPU]

    def run(self, outputs: list[str], feeds: dict[str, NDArray[Any]]) -> Any:
        self.sizes.append(len(feeds["user"]))
        names = [*outputs, *(one.name for one in self._session.get_outputs() if one.name == "checked")]
        return self._session.run(names, feeds)[: len(outputs)]


def scored(session: Sturdy, users: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    index, score = session.run(OUTPUTS, {"user": np.array(users, np.int64)})
    return index, score


def test_a_user_whom_the_graph_fails_on_harms_no_neighbour() -> None:
    whole = Watched(graph())
    sturdy = Sturdy(whole, lambda: None, TOP)
    users = [0, 1, 2, 3, 99, 4, 0, 1]
    index, score = scored(sturdy, users)
    fine = np.array([user != 99 for user in users])
    expected = scored(sturdy, [user for user in users if user != 99])
    assert (index[fine] == expected[0]).all() and (score[fine] == expected[1]).all()
    assert np.isneginf(score[~fine]).all() and score.shape == (8, TOP)
    # The next micro-batch goes in one piece again.
    whole.sizes.clear()
    scored(sturdy, [0, 1, 2])
    assert whole.sizes == [3]


def test_a_batch_too_large_is_halved_until_it_fits() -> None:
    watched = Watched(graph(most=4))
    index, score = scored(Sturdy(watched, lambda: None, TOP), [0, 1, 2, 3, 4] * 3)
    plain = scored(Sturdy(Watched(graph()), lambda: None, TOP), [0, 1, 2, 3, 4] * 3)
    assert (index == plain[0]).all() and (score == plain[1]).all()
    assert max(size for size in watched.sizes if size <= 4) == 4


def test_where_the_gpu_fails_the_cpu_takes_over_for_the_rest_of_the_release() -> None:
    gpu, cpu = Watched(graph(most=0), "CUDAExecutionProvider"), Watched(graph())
    # A GPU that is lost fails whatever it is given: one user more than its table has rows.
    sturdy = Sturdy(gpu, lambda: cpu, TOP)
    assert sturdy.get_providers()[0] == "CUDAExecutionProvider"
    _, score = scored(sturdy, [99, 1])
    assert sturdy.get_providers()[0] == "CPUExecutionProvider" and cpu.sizes == [1, 1]
    assert np.isneginf(score[0]).all() and np.isfinite(score[1]).all()
    gpu.sizes.clear()
    scored(sturdy, [0, 1, 2])
    assert gpu.sizes == [] and cpu.sizes[-1] == 3


@pytest.mark.parametrize(("in_turn", "most"), [(True, 1), (False, 4)])
def test_runs_go_one_at_a_time_only_where_they_must(in_turn: bool, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    watched, at_once, seen = Watched(graph()), 0, 0
    all_here = threading.Barrier(most, timeout=10)
    plain = watched.run

    def run(*arguments: Any) -> Any:
        nonlocal at_once, seen
        at_once += 1
        seen = max(seen, at_once)
        all_here.wait()
        time.sleep(0.02)
        at_once -= 1
        return plain(*arguments)

    monkeypatch.setattr(watched, "run", run)
    sturdy = Sturdy(watched, lambda: None, TOP, in_turn)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda user: scored(sturdy, [user]), [0, 1, 2, 3]))
    assert seen == most
    assert all(np.isfinite(score).all() for _, score in found)


def test_two_runs_that_a_lost_gpu_fails_ask_for_one_session_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, asked = Watched(graph(), "CUDAExecutionProvider"), []
    both_run = threading.Barrier(2, timeout=10)

    def lost(_: list[str], feeds: dict[str, NDArray[Any]]) -> Any:
        both_run.wait()
        # The other one hears of it when the CPU has long taken over.
        time.sleep(0.3 * float(feeds["user"][0]))
        raise RuntimeError("the GPU is lost")

    def on_cpu() -> Watched:
        asked.append(Watched(graph()))
        return asked[-1]

    monkeypatch.setattr(gpu, "run", lost)
    sturdy = Sturdy(gpu, on_cpu, TOP)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda user: scored(sturdy, [user]), [0, 1]))
    assert len(asked) == 1 and sorted(asked[0].sizes) == [1, 1]
    assert all(np.isfinite(score).all() for _, score in found)
