import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from schemas.errors import ConfigError, FreshrecError
from tests.unit.trainer.shop import chain_clicks
from trainer.__main__ import app, seeds_of
from trainer.evaluate.command import Options, evaluate
from trainer.evaluate.metrics import METRICS

# matplotlib warns of its own parts.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("events") / "shop.csv"
    chain_clicks(40, users=60, events=20, seed=3).select("user_id", "item_id", "event_time").write_csv(path)
    return path


@pytest.mark.parametrize("protocol", ["leave-one-out", "successive", "prequential"])
def test_a_table_json_and_a_plot_come_out(file: Path, tmp_path: Path, protocol: str) -> None:
    arguments = ["evaluate", str(file), "--protocol", protocol, "--periods", "3", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--cut", "0.7", "--seeds", "1,2"])
    assert done.exit_code == 0, done.output
    assert "vmis-knn" in done.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (tmp_path / "out" / "result.png").read_bytes().startswith(b"\x89PNG")
    assert result["protocol"]["name"] == protocol
    assert result["seeds"] == [1, 2]
    assert {"cpu", "cores", "gpu", "python", "torch"} <= set(result["machine"])
    assert result["data"]["events"] == 1200
    assert set(result["arms"]) == {"popularity", "last-item", "vmis-knn"}
    for arm in result["arms"].values():
        assert set(METRICS) < set(arm["mean"]["all"])
        assert all(0 <= arm["mean"]["all"][metric] <= 1 for metric in METRICS)
        run = arm["seeds"]["1"]
        assert run["learn_seconds"] >= 0
        assert len(run["periods"]) == {"leave-one-out": 0, "successive": 10, "prequential": 3}[protocol]
        if run["periods"]:
            assert sum(part["events"] for part in run["periods"]) == run["groups"]["all"]["events"]


def test_the_same_command_gives_the_same_figures(file: Path, tmp_path: Path) -> None:
    options = Options(file, out=tmp_path, limit_users=30)
    once, again = evaluate(options).json(), evaluate(options).json()
    for arm, found in once["arms"].items():
        assert found["mean"] == again["arms"][arm]["mean"]
    assert once["data"]["users"] == 30


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"protocol": "random"}, "--protocol random is unknown"),
        ({"arms": ("popularity", "oracle")}, "--arms oracle is unknown"),
        ({"arms": ()}, "nothing to run"),
        ({"repeats": "maybe"}, "--repeats maybe is unknown"),
        ({"history": 0}, "--history 0 is too small"),
        ({"period": "5x"}, "is no period"),
        ({"period": "99w"}, "no event to foresee"),
        ({"cut": 2.0, "protocol": "successive"}, "no share"),
        ({"format": "netflix"}, "--format netflix is unknown"),
    ],
)
def test_what_cannot_be_run_is_refused(file: Path, tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        evaluate(Options(file, out=tmp_path, **options))  # type: ignore[arg-type]


def test_a_file_that_does_not_fit_ends_with_3(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("user_id,event_time\nu,1\n")
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "bad.csv")])
    assert isinstance(done.exception, FreshrecError)
    assert done.exception.exit_code == 3


def test_an_order_within_users_cannot_be_cut_in_time(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "beauty_sequential_data.txt.gz").write_bytes(gzip.compress(b"1 2 3 4\n2 3 4 5\n"))
    titles = b"s3rec_item\tp5_item\tasin\ttitle\n1\t2\tB1\tRed\n"
    (tmp_path / "derived_s3rec_beauty_items.tsv.gz").write_bytes(gzip.compress(titles))
    with pytest.raises(ConfigError, match="cannot be cut in time; use --protocol leave-one-out"):
        evaluate(Options(tmp_path, format="amazon-beauty", protocol="successive"))


def test_seeds_are_a_list_of_whole_numbers() -> None:
    assert seeds_of("1,2, 3,2") == (1, 2, 3)
    with pytest.raises(ConfigError, match="no list of whole numbers"):
        seeds_of("one")
