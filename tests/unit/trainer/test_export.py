from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from schemas.errors import ModelRefused
from schemas.features import COUNTER_NAMES
from schemas.user_state import HISTORY
from tests.unit.trainer.conftest import ITEM_IDS
from trainer.export import INPUTS, _overlap, compare, graph_feed, open_graph, run_graph
from trainer.network import Scorer
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories
from trainer.start import first_network

pytestmark = pytest.mark.filterwarnings("ignore")
AVAILABLE = np.ones(len(ITEM_IDS) + 1, np.bool_)


def test_the_graph_is_fed_and_answers_as_the_contract_says(exported: Path) -> None:
    graph = onnx.load(exported / "model.onnx").graph

    def shape(value: onnx.ValueInfoProto) -> list[int | str]:
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert {value.name: shape(value) for value in graph.input} == {
        "item_index": ["batch", HISTORY],
        "action": ["batch", HISTORY],
        "gap": ["batch", HISTORY],
        "age": ["batch", HISTORY],
        "counters": ["batch", len(COUNTER_NAMES)],
        "available": [len(ITEM_IDS) + 1],
    }
    assert {value.name: shape(value) for value in graph.output} == {
        "top_index": ["batch", 50],
        "top_score": ["batch", 50],
    }
    assert (exported / "items").read_text() == "".join(f"{item_id}\n" for item_id in ITEM_IDS)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_graph_gives_what_the_network_gives(exported: Path, shop: Histories, size: int) -> None:
    available = AVAILABLE.copy()
    available[10:30] = False
    feed = graph_feed(shop, np.unique(shop.last)[:size], available)
    index, score = run_graph(open_graph(exported, 1), feed)
    scorer = Scorer(first_network(NetworkConfig(len(ITEM_IDS)), shop, seed=2).eval(), 50)
    with torch.no_grad():
        expected_index, expected_score = scorer(*(torch.from_numpy(feed[n]) for n in INPUTS))
    assert index.shape == score.shape == (size, 50)
    listed = np.isfinite(score)
    assert (listed == np.isfinite(expected_score.numpy())).all()
    np.testing.assert_allclose(score[listed], expected_score.numpy()[listed], atol=1e-5)
    assert (index == expected_index.numpy())[listed].mean() > 0.99
    assert not (index[listed] >= 10).all()
    assert not (((index >= 10) & (index < 30)) & listed).any()


def test_the_warmup_holds_inputs_and_the_answers_to_them(exported: Path) -> None:
    with np.load(exported / "warmup") as warmup:
        stored = dict(warmup)
    assert set(stored) == {*INPUTS, "top_index", "top_score"}
    assert len(stored["item_index"]) == 64
    index, score = run_graph(open_graph(exported, 1), {name: stored[name] for name in INPUTS})
    assert (index == stored["top_index"]).all()
    np.testing.assert_allclose(score, stored["top_score"], atol=1e-5)


def test_a_graph_of_another_network_is_refused(exported: Path, shop: Histories) -> None:
    other = Scorer(first_network(NetworkConfig(len(ITEM_IDS)), shop, seed=3).eval(), 50)
    feed = graph_feed(shop, np.unique(shop.last), AVAILABLE)
    with pytest.raises(ModelRefused, match=r"shares .* of the network's lists"):
        compare(open_graph(exported, 1), other, feed)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelRefused, match="does not load"):
        open_graph(tmp_path, 1)


def test_lists_that_end_early_are_compared_up_to_their_end() -> None:
    index = np.array([[3, 1, 2, 4], [1, 2, 3, 4]])
    expected = np.array([[1, 3, 4, 2], [1, 2, 3, 4]])
    shown = np.array([[True, True, False, False], [True, True, True, True]])
    assert _overlap(index, expected, shown) == 1.0
    expected[1, 0] = 9
    assert _overlap(index, expected, shown) == 5 / 6
