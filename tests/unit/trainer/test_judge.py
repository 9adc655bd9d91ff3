from pathlib import Path

import numpy as np
import pytest

from schemas.errors import ModelRefused
from schemas.features import Vocabulary
from tests.unit.trainer.conftest import ITEM_IDS
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer.export import graph_feed, open_graph, run_graph
from trainer.judge import (
    DAY_MS,
    Contender,
    Judged,
    foreseen_by_graph,
    foreseen_by_popularity,
    judge,
    refuse_if_worse,
)
from trainer.sequences import Histories, histories, next_items

pytestmark = pytest.mark.filterwarnings("ignore")


def worked_example() -> tuple[Histories, int]:
    """Items a … d sold 4, 3, 2 and 1 times before the cut; u then buys d, after b and after a."""
    sold = [("x", "aaaabbbcc")]
    rows = [(f"{user}{n}", item, START_MS + n) for user, items in sold for n, item in enumerate(items)]
    cut = START_MS + 1_000_000
    rows += [("u", "d", cut - 3), ("u", "b", cut + 1), ("u", "c", cut + 2)]
    return histories(clicks_of(rows), Vocabulary(["a", "b", "c", "d"])), cut


def test_popularity_ranks_by_count_without_what_the_user_has() -> None:
    events, cut = worked_example()
    place = next_items(events, cut)
    gains, days = foreseen_by_popularity(events, place, cut, item_count=4)
    # b: only a is sold more → rank 2. c: a and b are, but u has b by then → rank 2 again.
    np.testing.assert_allclose(gains.ndcg, [1 / np.log2(3), 1 / np.log2(3)])
    assert gains.hit.tolist() == [1.0, 1.0]
    assert days == 1


def test_popularity_counts_nothing_of_the_held_back_slice() -> None:
    rows = [(f"h{n}", "z", START_MS + n) for n in range(5)]
    cut = START_MS + DAY_MS // 2
    late = [(f"n{n}", "a", cut + n) for n in range(50)]  # everybody buys a, after the cut
    rows += [("u", "z", cut - 1), *late, ("u", "a", cut + 100)]
    events = histories(clicks_of(rows), Vocabulary(["y", "x", "a", "z"]))
    place = next_items(events, cut)
    gains, _ = foreseen_by_popularity(events, place, cut, item_count=4)
    np.testing.assert_allclose(gains.ndcg, [1 / np.log2(4)])  # as unsold as y and x, listed after them


def test_the_graph_is_judged_by_the_rank_of_the_next_item(exported: Path, shop: Histories) -> None:
    place = next_items(shop, 0)
    gains = foreseen_by_graph(Contender(exported, len(ITEM_IDS)), shop, place, threads=1)
    # One by one, straight from the definition.
    graph, available = open_graph(exported, 1), np.ones(len(ITEM_IDS) + 1, np.bool_)
    for number in range(0, len(place), 97):
        at = place[number : number + 1]
        listed = run_graph(graph, graph_feed(shop, at - 1, available))[0][0, :10].tolist()
        target = int(shop.item_index[at[0]])
        rank = listed.index(target) + 1 if target in listed else None
        assert gains.hit[number] == (rank is not None)
        assert gains.ndcg[number] == pytest.approx(1 / np.log2(rank + 1) if rank else 0.0)
    assert 0 < gains.hit.mean() < 1


def test_items_unknown_to_a_former_model_are_misses(exported: Path, shop: Histories) -> None:
    moved = Histories(
        shop.first, shop.last, shop.item_index + len(ITEM_IDS), shop.action, shop.event_time,
        shop.user_count,
    )  # fmt: skip
    gains = foreseen_by_graph(Contender(exported, len(ITEM_IDS)), moved, next_items(moved, 0), 1)
    assert gains.hit.sum() == 0


def test_a_model_that_does_not_beat_popularity_is_refused(exported: Path) -> None:
    rng = np.random.default_rng(1)
    # One item sells to everybody: nothing beats saying so, least of all a model of another shop.
    rows = [(f"u{n}", ITEM_IDS[rng.integers(1, 60)], START_MS + n) for n in range(400)]
    rows += [(f"u{n}", ITEM_IDS[70], START_MS + DAY_MS + n) for n in range(400)]
    events = histories(clicks_of(rows), Vocabulary(ITEM_IDS))
    with pytest.raises(ModelRefused, match=r"does not beat popularity \(NDCG@10 [01]\.\d{4}"):
        judge(Contender(exported, len(ITEM_IDS)), None, events, START_MS + DAY_MS + 200, 1)


def test_a_model_clearly_below_the_served_one_is_refused_with_the_numbers() -> None:
    rng = np.random.default_rng(0)
    served = Judged(rng.random(5_000), np.ones(5_000))
    with pytest.raises(ModelRefused, match="worse than the served one"):
        refuse_if_worse(Judged(served.ndcg * 0.9, served.hit), served)
    refuse_if_worse(Judged(served.ndcg * 0.99, served.hit), served)  # within the margin
    noise = rng.normal(0, 0.3, 200)
    few = Judged(served.ndcg[:200], served.hit[:200])
    refuse_if_worse(Judged(few.ndcg + noise - noise.mean() - 0.02, few.hit), few)  # may be chance
