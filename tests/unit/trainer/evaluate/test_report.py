import json
from pathlib import Path

import pytest

from trainer.evaluate.harness import Part, Run
from trainer.evaluate.metrics import METRICS
from trainer.evaluate.plot import draw
from trainer.evaluate.report import Report, deviation, mean

# matplotlib warns of its own parts.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


def run(arm: str, seed: int, value: float, parts: int) -> Run:
    found = {"events": 100.0, **dict.fromkeys(METRICS, value)}
    groups = {"all": found, "known": found, "new items": {"events": 0.0}, "new users": {"events": 0.0}}
    series = tuple(Part(1_700_000_000_000 + n * 86_400_000, found, 1.0, 2.0) for n in range(parts))
    return Run(arm, "as it is", seed, groups, series, 3.0, 4.0)


def report(parts: int, clock: str = "time") -> Report:
    runs = (run("first", 1, 0.1, parts), run("first", 2, 0.3, parts), run("second", 1, 0.25, parts))
    data = {"name": "shop", "items": 1_000, "clock": clock}
    return Report(data, {"name": "prequential"}, (1, 2), runs, "python -m trainer evaluate shop.csv")


def test_mean_and_deviation_over_seeds_are_those_of_a_sample() -> None:
    values = [{"ndcg@10": 0.1}, {"ndcg@10": 0.3}]
    assert mean(values)["ndcg@10"] == pytest.approx(0.2)
    assert deviation(values)["ndcg@10"] == pytest.approx(0.02**0.5)
    assert deviation(values[:1]) == {"ndcg@10": 0.0}


def test_machines_find_every_figure() -> None:
    content = json.loads(json.dumps(report(3).json(), allow_nan=False))
    first = content["arms"]["first"]
    assert first["mean"]["all"]["ndcg@10"] == pytest.approx(0.2)
    assert first["standard_deviation"]["all"]["hr@10"] == pytest.approx(0.02**0.5)
    assert first["mean"]["new items"] == {"events": 0.0}
    assert [part["learn_seconds"] for part in first["seeds"]["2"]["periods"]] == [1.0] * 3
    assert content["arms"]["second"]["seeds"].keys() == {"1"}
    assert content["command"] == "python -m trainer evaluate shop.csv"


@pytest.mark.parametrize(("parts", "clock"), [(0, "place"), (4, "time"), (4, "order")])
def test_a_plot_is_drawn_with_and_without_time(tmp_path: Path, parts: int, clock: str) -> None:
    draw(report(parts, clock), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
