from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import ModelRefused
from schemas.features import Vocabulary
from schemas.release import ITEMS
from tests.unit.trainer.conftest import ITEM_IDS, UNTIL_MS
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer import judge as module
from trainer.config import DAY_MS, Gate
from trainer.export import graph_feed, open_graph, run_graph
from trainer.judge import (
    Contender,
    Judged,
    foreseen_by_graph,
    foreseen_by_popularity,
    judge,
    worse_than_served,
)
from trainer.latency import Latency
from trainer.sequences import Histories, histories, next_items

pytestmark = pytest.mark.filterwarnings("ignore")
ALL = np.array([False] + [True] * len(ITEM_IDS))


@pytest.fixture
def contender(exported: Path, shop: Histories) -> Contender:
    return Contender(exported, shop, ALL, UNTIL_MS)


@pytest.fixture
def judge_from(shop: Histories) -> int:
    return int(np.quantile(shop.event_time, 0.9))


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


def test_the_graph_is_judged_by_the_rank_of_the_next_item(contender: Contender, shop: Histories) -> None:
    place = next_items(shop, 0)
    gains = foreseen_by_graph(contender, place, threads=1)
    # One by one, straight from the definition.
    graph = open_graph(contender.folder, 1)
    for number in range(0, len(place), 97):
        at = place[number : number + 1]
        listed = run_graph(graph, graph_feed(shop, at - 1, ALL))[0][0, :10].tolist()
        target = int(shop.item_index[at[0]])
        rank = listed.index(target) + 1 if target in listed else None
        assert gains.hit[number] == (rank is not None)
        assert gains.ndcg[number] == pytest.approx(1 / np.log2(rank + 1) if rank else 0.0)
    assert 0 < gains.hit.mean() < 1


def test_items_unknown_to_a_former_model_are_misses(contender: Contender, shop: Histories) -> None:
    stranger = replace(contender, events=replace(shop, item_index=np.zeros_like(shop.item_index)))
    assert foreseen_by_graph(stranger, next_items(shop, 0), 1).hit.sum() == 0


def test_a_former_model_is_judged_by_its_own_index_without_what_has_left(contender: Contender, shop: Histories) -> None:
    place = next_items(shop, 0)
    gains = foreseen_by_graph(contender, place, 1)
    left = replace(contender, available=ALL.copy())
    left.available[1:41] = False
    better = foreseen_by_graph(left, place, 1)
    stayed = shop.item_index[place] > 40
    assert (better.ndcg[stayed] >= gains.ndcg[stayed]).all()
    assert better.ndcg[stayed].sum() > gains.ndcg[stayed].sum()
    assert not better.hit[~stayed].any()


# ── why a candidate is refused ───────────────────────────────────────────────────────────────────


def test_a_good_candidate_is_accepted_with_its_numbers(contender: Contender, judge_from: int) -> None:
    found = judge(contender, contender, judge_from, 1, Gate())
    assert found.reasons == []
    found.refuse()
    numbers = found.metrics
    assert numbers["ndcg"] == numbers["served_ndcg"] > numbers["popularity_ndcg"]
    assert 0 < numbers["latency_p50_ms"] <= numbers["latency_p99_ms"]
    assert numbers["size_mib"] == pytest.approx(
        sum((contender.folder / name).stat().st_size for name in ("model.onnx", "items", "warmup")) / 2**20
    )


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_with_how_many(
    contender: Contender, judge_from: int, monkeypatch: pytest.MonkeyPatch, spoilt: float
) -> None:
    def spoil(*arguments: Any) -> Any:
        index, score = run_graph(*arguments)
        score[:3, 7] = spoilt
        return index, score

    monkeypatch.setattr(module, "run_graph", spoil)
    found = judge(contender, None, judge_from, 1, Gate())
    judged = int(found.metrics["judged_events"])
    assert judged < module.JUDGED_AT_ONCE
    assert found.reasons == [f"{contender.folder.name} gives scores that are not finite to 3 of {judged} judged users"]
    with pytest.raises(ModelRefused, match="the served model stays"):
        found.refuse()


def test_lists_that_end_before_the_items_do_are_refused(
    contender: Contender, judge_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*arguments: Any) -> Any:  # what a half-precision overflow does to the least of many scores
        index, score = run_graph(*arguments)
        score[:2, 40:] = -np.inf
        return index, score

    monkeypatch.setattr(module, "run_graph", cut)
    found = judge(contender, None, judge_from, 1, Gate())
    assert "gives 2 of" in found.reasons[0] and "lists that end before the items do" in found.reasons[0]


def test_a_served_model_that_cannot_be_compared_refuses_nothing(
    contender: Contender, judge_from: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in contender.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    found = judge(contender, replace(contender, folder=tmp_path), judge_from, 1, Gate())
    assert found.reasons == []
    assert "served_ndcg" not in found.metrics
    assert "cannot be compared" in capsys.readouterr().out


def test_a_model_that_does_not_beat_popularity_is_refused(exported: Path) -> None:
    rng = np.random.default_rng(1)
    # One item sells to everybody: nothing beats saying so, least of all a model of another shop.
    rows = [(f"u{n}", ITEM_IDS[rng.integers(1, 60)], START_MS + n) for n in range(400)]
    rows += [(f"u{n}", ITEM_IDS[70], START_MS + DAY_MS + n) for n in range(400)]
    events = histories(clicks_of(rows), Vocabulary(ITEM_IDS))
    found = judge(Contender(exported, events, ALL, UNTIL_MS), None, START_MS + DAY_MS + 200, 1, Gate())
    with pytest.raises(ModelRefused, match=r"does not beat popularity \(NDCG@10 [01]\.\d{4}"):
        found.refuse()


def test_a_model_clearly_below_the_served_one_is_refused_with_the_numbers() -> None:
    rng = np.random.default_rng(0)
    served = Judged(rng.random(5_000), np.ones(5_000))
    [reason] = worse_than_served(Judged(served.ndcg * 0.9, served.hit), served, 0.02)
    assert "worse than the served one" in reason and "2.0%" in reason
    assert not worse_than_served(Judged(served.ndcg * 0.99, served.hit), served, 0.02)  # within the margin
    assert worse_than_served(Judged(served.ndcg * 0.99, served.hit), served, 0.0)  # but the margin is a setting
    noise = rng.normal(0, 0.3, 200)
    few = Judged(served.ndcg[:200], served.hit[:200])
    assert not worse_than_served(Judged(few.ndcg + noise - noise.mean() - 0.02, few.hit), few, 0.0)  # may be chance


def test_the_judge_compares_with_the_served_model(
    contender: Contender, judge_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = foreseen_by_graph

    def clairvoyant(of: Contender, *rest: Any) -> Judged:
        judged = real(of, *rest)
        return judged if of is contender else Judged(np.ones_like(judged.ndcg), np.ones_like(judged.hit))

    monkeypatch.setattr(module, "foreseen_by_graph", clairvoyant)
    found = judge(contender, replace(contender), judge_from, 1, Gate())
    assert ["worse than the served one" in reason for reason in found.reasons] == [True]


def measured(monkeypatch: pytest.MonkeyPatch, p99s: list[float]) -> None:
    """Latencies that come out one after the other."""
    monkeypatch.setattr(module, "latency", lambda *_: Latency(1.0, p99s.pop(0)))


def test_a_model_that_is_too_slow_is_refused_with_the_numbers(
    contender: Contender, judge_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, [31.0, 32.0, 33.0])
    found = judge(contender, None, judge_from, 1, Gate(latency_ms=20))
    assert found.reasons == ["it takes 33.0 ms for 64 users (p99 on CPU), trainer.latency_ms allows 20"]
    assert found.metrics["latency_p99_ms"] == 33.0


def test_a_machine_that_was_busy_for_a_moment_is_measured_again(
    contender: Contender, judge_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, [31.0, 19.0])
    assert judge(contender, None, judge_from, 1, Gate(latency_ms=20)).reasons == []


def test_a_budget_of_0_is_none(contender: Contender, judge_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, [10_000.0])
    assert judge(contender, None, judge_from, 1, Gate(latency_ms=0, size_mib=0)).reasons == []


def test_a_release_that_is_too_large_is_refused_with_the_numbers(contender: Contender, judge_from: int) -> None:
    [reason] = judge(contender, None, judge_from, 1, Gate(size_mib=0.25)).reasons
    assert reason.startswith("the release has 0.") and reason.endswith("MiB, trainer.size_mib allows 0.25")


def test_a_model_of_older_events_than_the_served_one_is_refused(contender: Contender, judge_from: int) -> None:
    ahead = replace(contender, until_ms=UNTIL_MS + 1000)
    [reason] = judge(contender, ahead, judge_from, 1, Gate()).reasons
    assert reason == (
        "the new model has learned until 2023-11-14 22:13:20 UTC, the served one until 2023-11-14 22:13:21 UTC"
    )


def test_a_model_that_lacks_living_items_of_the_served_one_is_refused(
    contender: Contender, judge_from: int, tmp_path: Path
) -> None:
    for file in contender.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / ITEMS).write_text("".join(f"{item}\n" for item in [*ITEM_IDS[:-1], "renamed"]))
    found = judge(replace(contender, folder=tmp_path), contender, judge_from, 1, Gate())
    assert found.reasons == ["the new model lacks 1 of the 80 living items of the served one, i079 first"]
    left = replace(contender, available=ALL.copy())
    left.available[-1] = False  # i079 is dead: nobody misses it
    assert judge(replace(contender, folder=tmp_path), left, judge_from, 1, Gate()).reasons == []


def test_all_reasons_are_named_at_once(contender: Contender, judge_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, [31.0] * 3)
    ahead = replace(contender, until_ms=UNTIL_MS + 1000)
    found = judge(contender, ahead, judge_from, 1, Gate(latency_ms=20, size_mib=0.25))
    assert len(found.reasons) == 3


def test_nothing_to_judge_on_is_a_reason(contender: Contender) -> None:
    [reason] = judge(contender, None, 2**60, 1, Gate()).reasons
    assert "no held-back event" in reason


def test_latency_is_measured_on_the_graph(contender: Contender, shop: Histories) -> None:
    from trainer.latency import latency

    graph = open_graph(contender.folder, 1)
    feed = graph_feed(shop, next_items(shop, 0)[:5] - 1, ALL)
    few, many = (latency(graph, feed, batch) for batch in (1, 256))
    assert 0 < few.p50_ms <= few.p99_ms
    assert many.p50_ms > 2 * few.p50_ms
