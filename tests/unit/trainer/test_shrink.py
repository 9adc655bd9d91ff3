"""Shrunk releases: the receipt says what is so, and what exceeds its bound is not published."""

import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import torch

from schemas.errors import ConfigError, ContractError, ModelRefused
from schemas.release import FILES, ModelRelease, digest_of
from streaming.model import load
from tests.unit.trainer.conftest import ITEM_IDS
from tests.unit.trainer.learning import ALONE, learn
from tests.unit.trainer.shop import chain_clicks
from tests.unit.trainer.test_shrink_lean import lively
from trainer import cycle as module
from trainer import shrink
from trainer.announce import Told
from trainer.config import Plan, Settings, plan
from trainer.export import export, graph_feed, open_graph, run_graph
from trainer.material import gather
from trainer.network import Network
from trainer.parts import write_parts
from trainer.publish import seal
from trainer.receipt import overlap, refusal, table_of
from trainer.recipe import NetworkConfig
from trainer.resume import resume_and_tune
from trainer.sequences import Histories, Ints, next_items
from trainer.show import receipts_table
from trainer.shrink import Full, narrowed, put_in_place, shrunk_or_full
from trainer.shrink_release import shrink_release
from trainer.start import save_checkpoint
from trainer.tune import Course
from trainer.ways import ways_of

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIG = NetworkConfig(len(ITEM_IDS), width=16, heads=2)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.latency.SECONDS", 0.1)


@pytest.fixture(scope="module")
def full(shop: Histories) -> Full:
    """A network that nobody fitted, and the last tenth of the events to foresee."""
    until = int(np.quantile(shop.event_time, 0.9))
    live = torch.ones(len(ITEM_IDS) + 1, dtype=torch.bool)
    network = lively(CONFIG, shop.before(until))
    return Full(network, shop.before(until), None, live, 40.0, 8.0, shop, next_items(shop, until))


@pytest.fixture(scope="module")
def wide(full: Full, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    export(full.network, ITEM_IDS, full.learned, folder, threads=1)
    return folder


@pytest.fixture
def folder(wide: Path, tmp_path: Path) -> Path:
    """A copy of the exported full model."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in FILES:
        (copy / name).write_bytes((wide / name).read_bytes())
    return copy


@pytest.fixture
def put(full: Full, folder: Path) -> Callable[..., dict[str, float]]:
    def put(*ways: str, bound: float = 1.0) -> dict[str, float]:
        return put_in_place(full, narrowed(full, ways, seed=1), ways, folder, threads=1, bound=bound)

    return put


def lists(folder: Path, full: Full) -> Ints:
    feed = graph_feed(full.events, full.places - 1, np.ones(len(ITEM_IDS) + 1, np.bool_))
    return run_graph(open_graph(folder, 1), feed)[0][:, :10]


# ── ways ─────────────────────────────────────────────────────────────────────────────────────────


def test_ways_are_joined_by_commas() -> None:
    assert ways_of("pruned, int8,pruned") == ("pruned", "int8")
    assert ways_of("none") == ()


@pytest.mark.parametrize("text", ["int4", "none,int8", "", "int8,fp16"])
def test_other_ways_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        ways_of(text)


def test_the_setting_is_checked_when_the_plan_is_made(tmp_path: Path) -> None:
    assert plan(Settings(trainer={"shrink": "pruned,int8"})).shrink == ("pruned", "int8")
    with pytest.raises(ConfigError, match="int4 is no way"):
        plan(Settings(trainer={"shrink": "int4"}))


# ── the receipt ──────────────────────────────────────────────────────────────────────────────────


def test_the_receipts_numbers_are_what_anybody_can_count(
    put: Callable[..., dict[str, float]], full: Full, wide: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.recover.STEPS", 10)
    receipt = put("pruned", "int8")
    # Of 16 · 16 matrices: query, two for key and value, output and two gates; of the feed-forward part 32 units wide.
    one_block = 6 * 16 * 16 + 3 * 32 * 16 + (16 + 32 + 16 + 16 + 64 + 16 + 16) + 4 * 16 + 2 * 50
    cut = 4 * 16 * 8 + 3 * 8 + 50 + 16 * 3 * 16 + 16 * 2  # one head of two and 16 units of 32
    tables = (80 + 1) * 16 + 9 * 16 + 33 * 16 + 27 * 16 + 16 + 2 * 16 + (80 + 1)
    assert receipt["parameters_before"] == tables + 2 * one_block + 33 * 2
    assert receipt["parameters_before"] - receipt["parameters_after"] == 2 * cut + 33
    assert receipt["bytes_before"] == (wide / "model.onnx").stat().st_size
    assert receipt["bytes_after"] == (folder / "model.onnx").stat().st_size < receipt["bytes_before"]

    target = full.events.item_index[full.places]
    before, after = lists(wide, full), lists(folder, full)
    for when, listed in (("before", before), ("after", after)):
        gains = [
            1 / np.log2(row.tolist().index(t) + 2) if t in row else 0 for row, t in zip(listed, target, strict=True)
        ]
        assert receipt[f"ndcg_{when}"] == pytest.approx(np.mean(gains))
    assert receipt["ndcg_change"] == pytest.approx(receipt["ndcg_after"] / receipt["ndcg_before"] - 1)
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(before.tolist(), after.tolist(), strict=True)]
    assert receipt["top10_overlap"] == pytest.approx(np.mean(kept))
    assert receipt["top10_overlap"] < 1
    assert receipt["judged_events"] == len(full.places)

    # 40 steps in 8 seconds, against 10 steps of the time that was taken.
    assert (receipt["learn_steps_before"], receipt["learn_steps_after"]) == (40, 10)
    spent = receipt["learn_steps_after"] * receipt["step_seconds_after"]
    assert receipt["optimisation_ratio"] == pytest.approx(8.0 / spent)
    assert receipt["optimisation_ratio"] != 1
    for batch in (1, 64, 1024):
        for when in ("before", "after"):
            assert 0 < receipt[f"p50_ms_{batch}_{when}"] <= receipt[f"p99_ms_{batch}_{when}"]
    # A process that opens a graph grows by more than the graph, and by less than 200 MiB for one this small.
    assert receipt["bytes_after"] < receipt["session_bytes_after"] < 200 * 2**20


def test_a_graph_that_says_the_same_has_a_receipt_of_nothing_lost(put: Callable[..., dict[str, float]]) -> None:
    receipt = put("lean")
    assert receipt["ndcg_change"] == 0
    assert receipt["top10_overlap"] > 0.999
    assert receipt["optimisation_ratio"] == 1
    assert receipt["parameters_before"] == receipt["parameters_after"]


def test_overlap_counts_items_wherever_they_stand_and_no_empty_places() -> None:
    assert overlap(np.array([[1, 2, 3]]), np.array([[3, 1, 9]])) == pytest.approx(2 / 3)
    assert overlap(np.array([[1, 2, 0]]), np.array([[2, 1, 0]])) == 1.0


def test_the_receipt_is_a_table(put: Callable[..., dict[str, float]]) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=StringIO())
    receipt = put("lean")
    console.print(table_of({"lean": receipt}, "made up"))
    text = console.export_text()
    assert f"{receipt['ndcg_after']:.4f} (+0.00%)" in text
    assert f"{receipt['bytes_before'] / 2**20:.2f}" in text


# ── the gate ─────────────────────────────────────────────────────────────────────────────────────


def numbers(**changed: float) -> dict[str, float]:
    good = {
        "ndcg_change": -0.004, "ndcg_before": 0.25, "ndcg_after": 0.249, "judged_events": 900.0,
        "p50_ms_64_before": 10.0, "p50_ms_64_after": 4.0,
    }  # fmt: skip
    return {**good, **changed}


def test_what_keeps_its_bound_is_accepted() -> None:
    assert refusal(numbers(), 0.01, for_cpu=True) is None


def test_what_loses_more_than_its_bound_is_refused_with_the_numbers() -> None:
    reason = refusal(numbers(ndcg_change=-0.02, ndcg_after=0.245), 0.01, for_cpu=True)
    assert reason == ("its NDCG@10 changes by -2.00% (0.2500 → 0.2450 on 900 events), trainer.shrink_loss allows 1.00%")


def test_what_is_slower_than_the_full_model_is_refused_where_it_is_to_run() -> None:
    slow = numbers(p50_ms_64_after=11.5)
    assert refusal(slow, 0.01, for_cpu=True) == "it takes 11.5 ms for 64 users, the full model 10.0"
    assert refusal(slow, 0.01, for_cpu=False) is None  # half precision is at home on a GPU


def test_a_refused_model_leaves_the_full_one_in_its_place(
    full: Full, folder: Path, wide: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shrink, "refusal", lambda receipt, bound, for_cpu: f"too much, {bound:.0%}")
    narrow = narrowed(full, ("int8",), seed=1)
    with pytest.raises(ModelRefused, match="shrunk by int8 is refused: too much, 1%"):
        put_in_place(full, narrow, ("int8",), folder, 1, 0.01)
    assert shrunk_or_full(full, narrow, ("int8",), folder, 1, 0.01) == {}
    assert "the full one goes on in its place" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name in FILES:
        assert digest_of((folder / name).read_bytes()) == digest_of((wide / name).read_bytes())


def test_without_a_way_the_full_model_is_not_measured_against_itself(full: Full, folder: Path) -> None:
    assert shrunk_or_full(full, narrowed(full, (), seed=1), (), folder, 1, 1.0) == {}


def test_a_model_that_really_loses_too_much_is_refused(
    full: Full, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.recover.STEPS", 1)  # nothing is recovered
    learned = replace(full, network=_that_knows_the_chain(full.learned))
    export(learned.network, ITEM_IDS, full.learned, folder, threads=1)
    with pytest.raises(ModelRefused, match=r"NDCG@10 changes by -\d+\.\d+%"):
        put_in_place(learned, narrowed(learned, ("pruned",), 1), ("pruned",), folder, 1, 0.01)


def _that_knows_the_chain(events: Histories) -> Network:
    """A network that foresees something: otherwise there would be nothing to lose."""
    torch.manual_seed(1)
    fitted = Network(replace(CONFIG, dropout=0.0))
    learn(fitted, Course(events, None, None, None), passes=20)
    return fitted.eval()


@pytest.mark.parametrize("ways", [("lean",), ("int8",), ("fp16",), ("pruned", "int8"), ("shared",)])
def test_the_job_tries_and_loads_what_was_put_in_place(
    put: Callable[..., dict[str, float]], folder: Path, ways: tuple[str, ...]
) -> None:
    receipt = put(*ways)
    release = seal(folder, folder.parent, "20260101-000000", None, {}, {}, receipt)
    said = ModelRelease(release.manifest.version, release.folder.as_uri(), release.manifest_sha256, published_at=1)
    model = load(said, ["CPUExecutionProvider"], 1, sys.executable)
    assert model.vocabulary.size == len(ITEM_IDS)
    assert model.manifest.receipt == receipt
    shown = receipts_table([release.manifest])
    assert shown.row_count == 1


# ── python -m trainer shrink ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    settings = Settings(
        trainer={"data": tmp_path / "data", "releases": tmp_path / "releases", "threads": 1, "text_model": ""}
    )
    store(tmp_path / "data", chain_clicks(80, users=90, events=20, seed=8))
    return plan(settings)


def store(data: Path, clicks: pl.DataFrame) -> None:
    """Clicks as collect leaves them."""
    placed = clicks.with_columns(
        pl.lit(0, pl.Int64).alias("produced_at"),
        pl.lit(0, pl.Int32).alias("partition"),
        pl.Series("offset", range(len(clicks)), pl.Int64),
    )
    write_parts(data / "clicks", "00000-000000000000.parquet", placed)


def released(planned: Plan, full: Full, wide: Path, until_ms: int) -> None:
    version = "20260101-000000"
    building = planned.releases / ".building-it"
    building.mkdir(parents=True)
    for name in FILES:
        (building / name).write_bytes((wide / name).read_bytes())
    metrics = {"ndcg": 0.5, "tune_steps": 40.0, "tune_seconds": 8.0}
    seal(building, planned.releases, version, None, metrics, {"until_ms": until_ms})
    save_checkpoint(full.network, ITEM_IDS, planned.checkpoint(version))


def test_a_release_is_shrunk_into_a_new_one_beside_it(planned: Plan, full: Full, wide: Path) -> None:
    until = int(np.quantile(full.events.event_time, 0.9))
    released(planned, full, wide, until)
    shrunk = shrink_release(replace(planned, shrink_loss=0.9), None, ("int8",))
    assert shrunk.manifest.parent == "20260101-000000"
    receipt = shrunk.manifest.receipt
    # The checkpoint holds no memory and no popularity of late: they are counted again, to the same graph as before.
    assert receipt["bytes_before"] == pytest.approx((wide / "model.onnx").stat().st_size, rel=0.01)
    target = full.events.item_index[full.places][:, None]
    gain = (lists(wide, full) == target) / np.log2(np.arange(10) + 2)
    assert receipt["ndcg_before"] == pytest.approx(gain.sum(axis=1).mean())
    assert receipt["judged_events"] == len(full.places)
    assert receipt["learn_steps_before"] == 40
    assert shrunk.manifest.metrics["ndcg"] == receipt["ndcg_after"]
    assert planned.checkpoint(shrunk.manifest.version).is_file()


def test_a_release_that_cannot_be_shrunk_within_its_bound_leaves_no_folder(
    planned: Plan, full: Full, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released(planned, full, wide, int(np.quantile(full.events.event_time, 0.9)))
    monkeypatch.setattr(shrink, "refusal", lambda *_, **__: "no")
    with pytest.raises(ModelRefused, match="shrunk by int8 is refused: no"):
        shrink_release(planned, "20260101-000000", ("int8",))
    assert [path.name for path in planned.releases.iterdir()] == ["20260101-000000"]


def test_without_release_checkpoint_or_clicks_it_says_what_is_missing(planned: Plan, full: Full, wide: Path) -> None:
    with pytest.raises(ContractError, match="no release to shrink"):
        shrink_release(planned, None, ("int8",))
    released(planned, full, wide, int(full.events.event_time.max()) + 1)
    with pytest.raises(ContractError, match="0 from after"):
        shrink_release(planned, None, ("int8",))


# ── in a cycle ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("refused", [False, True])
def test_a_cycle_publishes_the_shrunk_model_or_else_the_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    section = {"data": tmp_path / "data", "releases": tmp_path / "releases", "width": 16, "first_passes": 8}
    settings = Settings(trainer={**section, "threads": 1, "text_model": "", "shrink": "int8", "shrink_loss": 0.9})
    store(tmp_path / "data", chain_clicks(60, users=250, events=20, seed=5))
    # What a cycle says to Kafka, the flow tests see; here is no Kafka.
    asked: list[Settings] = []

    def told(settings: Settings) -> Told:
        asked.append(settings)
        return Told([], {})

    monkeypatch.setattr(module, "told", told)
    monkeypatch.setattr(module, "mark_seen", lambda *_: None)
    monkeypatch.setattr(
        module,
        "announce",
        lambda _, __, it: ModelRelease(it.manifest.version, it.folder.as_uri(), it.manifest_sha256, 1),
    )
    if refused:
        monkeypatch.setattr(shrink, "refusal", lambda *_, **__: "no")
    planned = plan(settings)
    material = gather(planned, None)
    assert material is not None
    network, fit = resume_and_tune(material, planned, planned.curves / "20260101-000000", ALONE)
    steps: list[str] = []
    release = module._finish(settings, planned, material, "20260101-000000", network, fit, steps.append)
    assert steps == ["shrink", "export", "judge", "publish"]
    assert len(asked) == 1, "the topics are read once for announcing and for what stays on disk"
    graph = onnx.load(release.folder / "model.onnx")
    whole = any(tensor.data_type == onnx.TensorProto.INT8 for tensor in graph.graph.initializer)
    assert whole == bool(release.manifest.receipt) == (not refused)
    assert sorted(path.name for path in release.folder.iterdir()) == sorted([*FILES, "manifest.json"])
    # Later cycles go on from the full network in any case.
    stored = torch.load(planned.checkpoint("20260101-000000"), weights_only=True)
    assert torch.equal(stored["state"]["item.weight"], network.item.weight)
