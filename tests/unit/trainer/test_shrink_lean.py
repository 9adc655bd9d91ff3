"""The graph that is laid by hand answers as the network does, in every precision."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from schemas.features import Inputs
from schemas.user_state import HISTORY
from tests.unit.trainer.conftest import ITEM_IDS
from trainer.export import INPUTS, graph_feed
from trainer.lean import LEVELS, MULTIPLIED_LEVELS, int8_rows, lay
from trainer.lean_rank import block_width
from trainer.network import Network, Scorer
from trainer.quantize import KEPT_NEIGHBOURS, observed_ranges, with_fewer_neighbours
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories
from trainer.start import know

pytestmark = pytest.mark.filterwarnings("ignore")
ITEMS = len(ITEM_IDS)
CONFIGS = [
    NetworkConfig(ITEMS, width=16, heads=2),
    NetworkConfig(ITEMS, width=16, heads=2, blocks=1),
    NetworkConfig(ITEMS, width=16, heads=2, blocks=3),
    NetworkConfig(ITEMS, width=24, heads=2, head_width=4, feed=10),
    NetworkConfig(ITEMS, width=16, heads=2, shared=True),
    NetworkConfig(ITEMS, width=16, heads=2, text=8),
]


def lively(config: NetworkConfig, histories: Histories) -> Network:
    """A network in which nothing is zero."""
    torch.manual_seed(3)
    network = Network(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        network.item.weight[0] = 0
        network.action.weight[0] = 0
        network.blend.normal_(std=0.3).abs_()
        network.sharpness.fill_(0.7)
    if config.text:
        network.set_text(torch.nn.functional.normalize(torch.randn(config.items + 1, config.text), dim=1))
    know(network, histories)
    return network


def session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answers(graph: onnx.ModelProto, feed: Inputs) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    index, score = session(graph).run(["top_index", "top_score"], feed)
    return index, score


def compared(
    network: Network, top_k: int, feed: Inputs, half: bool = False
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Lists of the lean graph and of the network, whose scores are the same; and which of their places hold an item."""
    index, score = answers(lay(network, top_k, half=half)[0], feed)
    with torch.no_grad():
        expected_index, expected_score = Scorer(network, top_k)(*(torch.from_numpy(feed[name]) for name in INPUTS))
    listed = np.isfinite(score)
    assert (listed == np.isfinite(expected_score.numpy())).all()
    np.testing.assert_allclose(score[listed], expected_score.numpy()[listed], atol=0.02 if half else 2e-5)
    return index, expected_index.numpy(), listed


def some_users(shop: Histories, count: int) -> Inputs:
    """Histories of many lengths, some items not to be had."""
    places = np.random.default_rng(4).permutation(len(shop))[:count]
    available = np.ones(ITEMS + 1, np.bool_)
    available[10:25] = False
    return graph_feed(shop, places, available)


def rows(feed: Inputs, taken: slice) -> Inputs:
    return {name: values if name == "available" else values[taken] for name, values in feed.items()}


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_lean_graph_gives_what_the_network_gives(shop: Histories, config: NetworkConfig, size: int) -> None:
    network = lively(config, shop)
    feed = some_users(shop, size)
    index, expected, listed = compared(network, 50, feed)
    assert (index == expected)[listed].mean() > 0.99


@pytest.mark.parametrize("history", [3, HISTORY, 70, 200])
def test_users_without_events_and_with_full_histories_are_answered_alike(shop: Histories, history: int) -> None:
    network = lively(replace(CONFIGS[0], history=history), shop)
    feed = some_users(replace(shop, history=history), 6)
    for name in ("item_index", "action", "gap", "age", "counters"):
        feed[name][:2] = 0  # as the job pads a batch
    rng = np.random.default_rng(5)
    feed["item_index"][4:] = rng.integers(0, ITEMS + 1, (2, history))  # 0: an event on an unknown item
    feed["action"][4:] = 2
    graph = lay(network, 50)[0]
    for part in (feed, rows(feed, slice(0, 2))):
        index, score = answers(graph, part)
        with torch.no_grad():
            expected = Scorer(network, 50)(*(torch.from_numpy(part[name]) for name in INPUTS))
        listed = np.isfinite(score)
        np.testing.assert_allclose(score[listed], expected[1].numpy()[listed], atol=2e-5)
        assert (index == expected[0].numpy())[listed].mean() > 0.99


def test_it_is_fed_and_answers_as_the_exported_one(shop: Histories, exported: Path) -> None:
    def interface(graph: onnx.GraphProto) -> dict[str, tuple[int, list[int | str]]]:
        return {
            value.name: (
                value.type.tensor_type.elem_type,
                [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
            )
            for value in (*graph.input, *graph.output)
        }

    lean, _ = lay(lively(CONFIGS[0], shop), 50)
    onnx.checker.check_model(lean, full_check=True)
    assert interface(lean.graph) == interface(onnx.load(exported / "model.onnx").graph)


def test_fewer_items_than_a_list_is_long(shop: Histories) -> None:
    few = NetworkConfig(5, width=16, heads=2)
    torch.manual_seed(1)
    feed = some_users(shop, 9)
    feed["item_index"] = feed["item_index"] % 3
    feed["available"] = np.ones(6, np.bool_)
    index, score = answers(lay(Network(few), 5)[0], feed)
    shown = np.isfinite(score)
    for row, listed in zip(range(9), shown, strict=True):
        had = set(feed["item_index"][row]) - {0}
        assert set(index[row][listed]) == set(range(1, 6)) - had


def test_long_lists_are_looked_for_in_blocks() -> None:
    assert block_width(80, 50) == 1
    assert block_width(20_000, 50) > 1


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("left", [1281, 3])
@pytest.mark.parametrize("remembers", [True, False])
def test_lists_found_block_by_block_are_the_same(shop: Histories, remembers: bool, left: int, half: bool) -> None:
    many = 1281  # of the last block two columns are items
    assert block_width(many, 5) > 1
    network = lively(replace(CONFIGS[0], items=many), shop)
    rng = np.random.default_rng(6)
    with torch.no_grad():
        # Neighbours shared by many items; and equals, far apart, that compete for the last place.
        network.neighbour_VM.copy_(torch.from_numpy(rng.integers(0, 400, network.neighbour_VM.shape)))
        network.strength_VM.uniform_(0, 0.1)
        for values in (network.item.weight, network.popularity, network.recent_VR):
            values[200::40] = values[200]
        if not remembers:
            network.blend[-2:] = 0
    feed = some_users(shop, 60)
    feed["item_index"] = np.where(feed["action"] > 0, rng.integers(0, many + 1, feed["item_index"].shape), 0)
    feed["available"] = np.arange(many + 1) > many - left  # the last ones, in a block that is not full
    index, expected, listed = compared(network, 5, feed, half)
    equals = np.arange(200, many + 1, 40)
    # In half precision neighbours in a list may change places.
    assert ((index == expected) | np.isin(index, equals))[listed].mean() > (0.9 if half else 0.99)
    assert all(len(set(row[shown])) == shown.sum() for row, shown in zip(index, listed, strict=True))
    assert index.max() <= many


# ── whole numbers and half precision ─────────────────────────────────────────────────────────────


def int8_graph(network: Network, shop: Histories) -> onnx.ModelProto:
    return lay(network, 50, observed_ranges(network, shop, np.arange(len(shop)), threads=1))[0]


@pytest.mark.parametrize("levels", [LEVELS, MULTIPLIED_LEVELS])
def test_rows_keep_their_direction_and_their_length_in_one_byte_a_dimension(levels: int) -> None:
    torch.manual_seed(0)
    table = torch.randn(9, 32) * torch.logspace(-6, 6, 9)[:, None]
    table[4] = 0
    whole, scale = int8_rows(table, levels)
    assert whole.dtype == np.int8
    back = torch.from_numpy(whole * scale[:, None])
    # Half a step of the row's greatest value, and what rounding leaves.
    assert ((back - table).abs() <= table.abs().amax(dim=1, keepdim=True) / (2 * levels - 1)).all()
    assert np.abs(whole).max() == levels


def test_two_products_with_the_greatest_activation_fit_16_bits() -> None:
    assert 2 * 255 * MULTIPLIED_LEVELS <= np.iinfo(np.int16).max < 2 * 255 * (MULTIPLIED_LEVELS + 2)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_int8_agrees_with_full_precision_within_bounds(shop: Histories, config: NetworkConfig) -> None:
    network = lively(config, shop)
    feed = some_users(shop, 200)
    full, small = lay(network, 50)[0], int8_graph(network, shop)
    (index, score), (near_index, near_score) = answers(full, feed), answers(small, feed)
    shared = (index[:, :10, None] == near_index[:, None, :10]).any(axis=2).mean()
    assert shared > 0.93
    # Scores spread by some units; a hundredth part of that is what eight bits leave open.
    spread = score[np.isfinite(score)].std()
    assert np.abs(score[:, 0] - near_score[:, 0]).mean() < 0.05 * spread
    assert not np.array_equal(score, near_score)
    assert sum(t.data_type == onnx.TensorProto.INT8 for t in small.graph.initializer) > 4


def test_whom_a_user_is_batched_with_changes_nothing_in_int8(shop: Histories) -> None:
    graph = session(int8_graph(lively(CONFIGS[0], shop), shop))
    feed = some_users(shop, 40)
    together = graph.run(["top_index", "top_score"], feed)
    for place in (0, 17, 39):
        alone = graph.run(["top_index", "top_score"], rows(feed, slice(place, place + 1)))
        np.testing.assert_allclose(alone[1][0], together[1][place], atol=1e-5)


def test_half_precision_agrees_with_full(shop: Histories) -> None:
    network = lively(CONFIGS[0], shop)
    feed = some_users(shop, 200)
    full, half = lay(network, 50)[0], lay(network, 50, half=True)[0]
    (index, score), (near_index, near_score) = answers(full, feed), answers(half, feed)
    assert (index[:, :10, None] == near_index[:, None, :10]).any(axis=2).mean() > 0.98
    listed = np.isfinite(score)
    assert (listed == np.isfinite(near_score)).all()
    np.testing.assert_allclose(near_score[listed], score[listed], atol=0.02)
    floats = {
        t.data_type for t in half.graph.initializer if t.data_type in (1, 10) and len(t.dims) > 1 and t.dims[0] > 9
    }
    assert onnx.TensorProto.FLOAT16 in floats
    assert half.ByteSize() < 0.75 * full.ByteSize()


def test_memory_keeps_the_strongest_neighbours(shop: Histories) -> None:
    network = lively(CONFIGS[0], shop)
    small = with_fewer_neighbours(network)
    assert small.neighbour_VM.shape == small.strength_VM.shape == (ITEMS + 1, KEPT_NEIGHBOURS)
    dropped = network.strength_VM[:, KEPT_NEIGHBOURS:]
    assert (small.strength_VM.amin(dim=1) >= dropped.amax(dim=1)).all()
    assert network.strength_VM.shape[1] > KEPT_NEIGHBOURS
    strength = {
        (of, int(near)): value
        for of in range(ITEMS + 1)
        for near, value in zip(network.neighbour_VM[of], network.strength_VM[of].tolist(), strict=True)
    }
    for of in range(ITEMS + 1):
        for near, value in zip(small.neighbour_VM[of].tolist(), small.strength_VM[of].tolist(), strict=True):
            assert near == 0 or strength[of, near] == value
