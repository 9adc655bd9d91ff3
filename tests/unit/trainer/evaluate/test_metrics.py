import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R, Success, nDCG

from schemas.errors import ModelRefused
from trainer.evaluate.metrics import figures, ranks_and_lists

MEASURES = {"ndcg@10": nDCG @ 10, "hr@10": Success @ 10, "mrr@20": RR @ 20, "recall@20": R @ 20}


def scored(rows: list[list[float]], target: list[int]) -> tuple[list[int], list[list[int]]]:
    """Ranks and lists of rows of scores of items 1 … V."""
    scores = np.array([[99.0, *row] for row in rows], np.float32)
    rank, lists = ranks_and_lists(scores, np.array(target))
    return rank.tolist(), lists.tolist()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_metrics_are_those_of_ir_measures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    events, items = 200, 60
    scores = rng.permuted(np.tile(np.arange(items + 1), (events, 1)), axis=1).astype(np.float32) - np.float32(30)
    target = rng.integers(1, items + 1, events)
    ours = figures(*ranks_and_lists(scores, target), items)
    run = {f"q{q}": {f"d{i}": float(scores[q, i]) for i in range(1, items + 1)} for q in range(events)}
    truth = {f"q{q}": {f"d{target[q]}": 1} for q in range(events)}
    theirs = ir_measures.calc_aggregate(MEASURES.values(), truth, run)
    for name, measure in MEASURES.items():
        assert ours[name] == pytest.approx(theirs[measure]), name


def test_figures_by_hand() -> None:
    lists = np.array([[1, 2, *[0] * 8], [2, 3, *[0] * 8], [3, 1, *[0] * 8]])
    found = figures(np.array([0, 2, 15]), lists, 6)
    assert found["events"] == 3
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2) / 3)
    assert found["hr@10"] == pytest.approx(2 / 3)
    assert found["mrr@20"] == pytest.approx((1 + 1 / 3 + 1 / 16) / 3)
    assert found["recall@20"] == pytest.approx(1)
    assert found["coverage@10"] == pytest.approx(3 / 6)


def test_ranks_at_the_edges_of_the_lists() -> None:
    lists = np.zeros((4, 10), np.int64)
    found = figures(np.array([9, 10, 19, 20]), lists, 100)
    assert (found["hr@10"], found["recall@20"], found["coverage@10"]) == (1 / 4, 3 / 4, 0)
    assert found["mrr@20"] == pytest.approx((1 / 10 + 1 / 11 + 1 / 20) / 4)


def test_of_equal_scores_the_lower_index_comes_first() -> None:
    assert scored([[1, 1, 1, 1]] * 4, [1, 2, 3, 4]) == ([0, 1, 2, 3], [[1, 2, 3, 4, *[0] * 6]] * 4)
    assert scored([[0.0, -0.0, 0.0]], [2])[0] == [1]


def test_a_constant_scorer_gains_no_more_than_chance() -> None:
    target = np.arange(1, 1001)
    found = figures(*ranks_and_lists(np.zeros((1000, 1001), np.float32), target), 1000)
    assert (found["hr@10"], found["coverage@10"]) == (0.01, 0.01)


def test_negative_scores_and_large_ones_keep_their_order() -> None:
    row = [-1e30, -3.0, -2.5, -1e-30, 0.0, 1e-30, 2.0, 1e30]
    ranks, lists = scored([row] * 8, list(range(1, 9)))
    assert ranks == [7, 6, 5, 4, 3, 2, 1, 0]
    assert lists[0] == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


def test_masked_items_are_in_no_list_and_rank_last() -> None:
    ranks, lists = scored([[3, -np.inf, 1]] * 2, [3, 2])
    assert ranks == [1, 3]
    assert lists == [[1, 3, *[0] * 8]] * 2


def test_the_column_of_no_item_never_counts() -> None:
    assert scored([[3, 2, 1]], [1]) == ([0], [[1, 2, 3, *[0] * 7]])


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(score: float) -> None:
    with pytest.raises(ModelRefused, match="not finite"):
        scored([[1.0, score, 0.0]], [1])


def test_of_no_events_there_are_no_figures() -> None:
    assert figures(np.zeros(0, np.int64), np.zeros((0, 10), np.int64), 5) == {"events": 0.0}
