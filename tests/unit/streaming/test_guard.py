"""What an honest new model may do, and what a bad one may not, on real graphs that score the same users."""

import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from schemas.user_state import States
from streaming import guard
from streaming.guard import EVERY_S, PROBATION_S, SAMPLE, WINDOW_S, WINDOW_USERS, Guard
from streaming.model import Model, load
from tests.releases import make_graph, make_release, make_warmup
from tests.unit.streaming.test_rank import states_of

COUNT = 200
ITEMS = [f"item-{n}" for n in range(COUNT)]
LEAST_OVERLAP = 0.1
Table = NDArray[np.float32]


def table(seed: int = 1) -> Table:
    """Scores of every item after every last item: what a model has learned."""
    return np.random.default_rng(seed).normal(size=(COUNT + 1, COUNT + 1)).astype(np.float32)


def near(scores: Table, noise: float) -> Table:
    """What the next cycle makes of it."""
    return scores + np.float32(noise) * table(99)


def graph_of(scores: Table, change: Callable[[onnx.ModelProto], None] = lambda _: None) -> bytes:
    """A graph whose lists depend on the user's last item."""
    graph = onnx.load_from_string(make_graph(ITEMS, []))
    graph.graph.initializer.append(numpy_helper.from_array(scores, "table"))
    graph.graph.initializer.append(numpy_helper.from_array(np.array(-1, np.int64), "newest"))
    for node in graph.graph.node:
        if node.op_type == "Add" and node.output[0] == "raw":
            node.input[1] = "learned"
    graph.graph.node.insert(0, helper.make_node("Gather", ["item_index", "newest"], ["last"], axis=1))
    graph.graph.node.insert(1, helper.make_node("Gather", ["table", "last"], ["learned"], axis=0))
    change(graph)
    content: bytes = graph.SerializeToString()
    return content


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Model]:
    made = iter(range(100))

    def make(scores: Table, items: list[str] = ITEMS, change: Any = lambda _: None) -> Model:
        number, graph = next(made), graph_of(scores, change)
        inputs, outputs = make_warmup(graph, COUNT)
        warmup = BytesIO()
        np.savez(warmup, **{**inputs, **outputs})
        release = make_release(
            tmp_path / f"{number}", items, [], f"20260101-0000{number:02}", model=graph, warmup=warmup.getvalue()
        )
        return load(release, ["CPUExecutionProvider"], 1)

    return make


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "Clock":
    clock = Clock()
    monkeypatch.setattr(guard, "time", clock)
    return clock


class Clock:
    """Time passes when the test says so; how long a model takes is measured as ever."""

    now = 1000.0
    perf_counter = staticmethod(time.perf_counter)

    def monotonic(self) -> float:
        return self.now


def users(seed: int, count: int = SAMPLE) -> States:
    choose = np.random.default_rng(seed)
    return states_of(*([ITEMS[n] for n in choose.integers(0, COUNT, 3)] for _ in range(count)))


def watch(new: Model, old: Model, comparisons: int = 20, least: float = LEAST_OVERLAP) -> str | None:
    """What a guard finds in so many comparisons, or None."""
    watching = Guard(least)
    masks = np.ones(new.vocabulary.size + 1, np.bool_), np.ones(old.vocabulary.size + 1, np.bool_)
    for seed in range(comparisons):
        if trouble := watching.compare(new, old, masks, users(seed)):
            return trouble
    return None


def test_what_the_next_cycle_makes_of_a_model_passes(made: Callable[..., Model]) -> None:
    old = made(table())
    for noise in (0.0, 0.3, 1.0):
        assert watch(made(near(table(), noise)), old) is None
    # Scores may be on another scale, and a little slower is no fault.
    assert watch(made(3 * table() + 2), old) is None


def test_an_item_more_or_less_moves_no_limit(made: Callable[..., Model]) -> None:
    renamed = [*ITEMS[:-3], "new-1", "new-2", "new-3"]
    assert watch(made(table(), renamed), made(table())) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_gives_one_user_no_number_goes_at_once(value: float, made: Callable[..., Model]) -> None:
    scores = table()
    last = int(np.random.default_rng(0).integers(0, COUNT, 3)[2]) + 1
    assert last > 3, "no user of the warm-up has this item last"
    scores[last] = value
    trouble = watch(made(scores), made(table()), comparisons=1)
    assert trouble is not None and trouble.startswith("non-finite: ")


def test_a_model_with_lists_of_other_items_goes(made: Callable[..., Model]) -> None:
    trouble = watch(made(-table()), made(table()))
    assert trouble is not None and trouble.startswith("overlap: ") and "10.0% are asked" in trouble
    assert watch(made(-table()), made(table()), least=0.0) is None


def test_a_model_whose_items_file_is_shuffled_goes(made: Callable[..., Model]) -> None:
    shuffled = list(np.random.default_rng(5).permutation(ITEMS))
    trouble = watch(made(table(), [str(item) for item in shuffled]), made(table()), least=0.25)
    assert trouble is not None and trouble.startswith("overlap: ")


def test_a_model_that_shows_everybody_the_same_goes(made: Callable[..., Model]) -> None:
    same = np.repeat(table()[:1], COUNT + 1, axis=0)
    same[:, :COUNT] += np.linspace(9, 0, COUNT, dtype=np.float32)
    monotone = watch(made(same), made(table()), least=0.0)
    assert monotone is not None and monotone.startswith("coverage: ")


def test_a_model_that_knows_fewer_users_goes(made: Callable[..., Model]) -> None:
    unknown = [*ITEMS[:20], *(f"other-{n}" for n in range(COUNT - 20))]
    trouble = watch(made(table(), unknown), made(table()))
    assert trouble is not None and trouble.startswith("coverage: it knows an item of ")


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 1000.0), (1000.0, 0.0), (1e-4, 0.0)])
def test_a_model_whose_scores_run_away_or_flatten_goes(factor: float, shift: float, made: Callable[..., Model]) -> None:
    scores = (np.float32(factor) * table() + np.float32(shift)).astype(np.float32)
    trouble = watch(made(scores), made(table()))
    assert trouble is not None and trouble.startswith("drift: ")


def test_a_model_that_hides_its_lists_goes(made: Callable[..., Model]) -> None:
    scores = table()
    scores[10:20] = -np.inf
    trouble = watch(made(scores), made(table()))
    assert trouble is not None and "got no list of it" in trouble


def test_a_model_that_takes_many_times_as_long_goes(made: Callable[..., Model]) -> None:
    def slow(graph: onnx.ModelProto) -> None:
        size = 900
        graph.graph.node.insert(0, helper.make_node("RandomNormal", [], ["noise"], shape=[size, size]))
        graph.graph.node.insert(1, helper.make_node("MatMul", ["noise", "noise"], ["more"]))
        graph.graph.node.insert(2, helper.make_node("ReduceMax", ["more"], ["most"], keepdims=0))
        graph.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nought"))
        graph.graph.node.insert(3, helper.make_node("Mul", ["most", "nought"], ["nothing"]))
        place = next(i for i, n in enumerate(graph.graph.node) if n.output[0] == "learned")
        graph.graph.node[place].output[0] = "learned_once"
        graph.graph.node.insert(place + 1, helper.make_node("Add", ["learned_once", "nothing"], ["learned"]))
        nodes = list(graph.graph.node)
        nodes.sort(key=lambda n: n.output[0] not in ("noise", "more", "most", "nothing"))
        del graph.graph.node[:]
        graph.graph.node.extend(nodes)

    trouble = watch(made(table(), change=slow), made(table()))
    assert trouble is not None and trouble.startswith("latency: ")


# ── when it is told ─────────────────────────────────────────────────────────────────────────────


def test_it_is_told_within_one_window_of_users(made: Callable[..., Model], clock: Clock) -> None:
    bad, good = made(-table()), made(table())
    needed = -(-WINDOW_USERS // SAMPLE)
    assert watch(bad, good, comparisons=needed - 1) is None
    assert watch(bad, good, comparisons=needed) is not None


def test_with_few_users_it_is_told_within_a_quarter_of_a_minute(made: Callable[..., Model], clock: Clock) -> None:
    bad, good, watching = made(-table()), made(table()), Guard(LEAST_OVERLAP)
    masks = (np.ones(COUNT + 1, np.bool_),) * 2
    found = None
    began = clock.now
    for seed in range(30):  # one and a half users a second
        clock.now += 0.7
        found = found or watching.compare(bad, good, masks, users(seed, 1))
        if found:
            break
    assert found is not None and WINDOW_S <= clock.now - began < 60


def test_a_model_that_goes_bad_later_goes_too(made: Callable[..., Model], clock: Clock) -> None:
    good, fine, bad, watching = made(table()), made(near(table(), 0.2)), made(-table()), Guard(LEAST_OVERLAP)
    masks = (np.ones(COUNT + 1, np.bool_),) * 2
    assert not any(watching.compare(fine, good, masks, users(seed)) for seed in range(40))
    assert any(watching.compare(bad, good, masks, users(seed)) for seed in range(2 * WINDOW_USERS // SAMPLE + 2))


def test_probation_is_passed_after_a_clean_window_and_a_minute(made: Callable[..., Model], clock: Clock) -> None:
    model, watching = made(table()), Guard(LEAST_OVERLAP)
    masks = (np.ones(COUNT + 1, np.bool_),) * 2
    clock.now += 10 * PROBATION_S
    assert not watching.passed, "nobody has come yet"
    watching = Guard(LEAST_OVERLAP)
    for seed in range(8):
        watching.compare(model, model, masks, users(seed))
    assert not watching.passed
    clock.now += PROBATION_S
    assert watching.passed
    assert watching.figures["overlap"] == watching.figures["items"] == watching.figures["known"] == 100
    assert watching.compared == 8 * SAMPLE


def test_comparisons_come_now_and_then(made: Callable[..., Model], clock: Clock) -> None:
    model, watching = made(table()), Guard(LEAST_OVERLAP)
    assert watching.due
    watching.compare(model, model, (np.ones(COUNT + 1, np.bool_),) * 2, users(1))
    assert not watching.due
    clock.now += EVERY_S
    assert watching.due
    watching.compare(model, model, (np.ones(COUNT + 1, np.bool_),) * 2, users(1, 2))
    clock.now += EVERY_S / 4
    assert watching.due, "few users cost little"
