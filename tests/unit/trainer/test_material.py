"""What a cycle works on, read from what was collected and from the release that serves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from schemas.errors import ModelRefused
from tests.unit.trainer.conftest import ITEM_IDS, UNTIL_MS
from tests.unit.trainer.shop import chain_clicks
from trainer.collect import ITEM_COLUMNS
from trainer.config import Plan, Settings, plan
from trainer.material import Material, gather
from trainer.parts import write_parts
from trainer.publish import Release
from trainer.resume import resume

pytestmark = pytest.mark.filterwarnings("ignore")
MakeRelease = Callable[..., Release]


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    """Five thousand clicks on the first seventy items."""
    planned = plan(Settings(trainer={"data": tmp_path / "data", "releases": tmp_path / "releases", "threads": 1}))
    clicks = chain_clicks(70, users=250, events=20, seed=5)
    placed = clicks.with_columns(
        pl.lit(0, pl.Int64).alias("produced_at"),
        pl.lit(0, pl.Int32).alias("partition"),
        pl.Series("offset", range(len(clicks)), pl.Int64),
    )
    write_parts(planned.data / "clicks", "00000-000000000000.parquet", placed)
    return planned


def gathered(planned: Plan, parent: Release | None) -> Material:
    material = gather(planned, parent)
    assert material is not None
    return material


def test_a_first_cycle_has_no_parent(planned: Plan) -> None:
    material = gathered(planned, None)
    assert (material.parent_version, material.checkpoint, material.serving) == (None, None, None)
    assert material.item_ids == ITEM_IDS[:70]
    assert material.live.sum() == 70
    assert len(material.settled) == (material.events.event_time < material.cut.judge_from).sum()
    assert material.trained_on()["until_ms"] == material.cut.judge_from


def test_the_served_model_sees_the_same_events_by_its_own_items(planned: Plan, make_release: MakeRelease) -> None:
    material = gathered(planned, make_release("20260101-000000"))
    # It was made of eighty items; nobody clicks the last ten, and no catalogue names them: they leave.
    assert material.item_ids == ITEM_IDS[:70]
    serving = material.serving
    assert serving is not None
    assert serving.available.tolist() == [False] + [True] * 70 + [False] * 10
    assert serving.until_ms == UNTIL_MS
    assert serving.events.item_index.tolist() == material.events.item_index.tolist()  # the order stayed
    pl.DataFrame(
        [(ITEM_IDS[3], "Third", [], None, True, None, False), (ITEM_IDS[79], None, [], None, False, None, True)],
        schema=ITEM_COLUMNS,
        orient="row",
    ).write_parquet(planned.data / "items.parquet")
    named = gathered(planned, make_release("20260101-000001"))
    assert named.titles[3] == "Third" and named.titles.count("") == 69


def test_an_index_moves_up_when_an_item_before_it_leaves(planned: Plan, make_release: MakeRelease) -> None:
    clicks = pl.read_parquet(planned.data / "clicks" / "*" / "*.parquet").filter(pl.col("item_id") != ITEM_IDS[0])
    for day in (planned.data / "clicks").iterdir():
        next(day.iterdir()).unlink()
    write_parts(planned.data / "clicks", "00000-000000000000.parquet", clicks)
    material = gathered(planned, make_release("20260101-000000"))
    assert material.item_ids == ITEM_IDS[1:70]
    assert material.serving is not None
    assert (material.serving.events.item_index == material.events.item_index + 1).all()


def test_what_the_served_model_has_learned_judges_nobody_even_without_its_checkpoint(
    planned: Plan, make_release: MakeRelease
) -> None:
    first = gathered(planned, None)
    middle = int(np.quantile(first.events.event_time, 0.6))
    release = make_release("20260101-000000")
    trained_on = {**release.manifest.trained_on, "until_ms": middle}
    later = replace(release, manifest=release.manifest.model_copy(update={"trained_on": trained_on}))
    material = gathered(planned, later)
    assert material.checkpoint is None
    new = (material.events.event_time >= middle).sum()
    held = (material.events.event_time >= material.cut.judge_from).sum()
    assert held <= new // 4 + 1
    assert gather(planned, replace(later, manifest=later.manifest.model_copy(
        update={"trained_on": {"until_ms": int(first.events.event_time.max())}}
    ))) is None  # fmt: skip


def test_too_few_events_for_a_first_model_are_refused(planned: Plan) -> None:
    for part in planned.data.glob("clicks/*/*.parquet"):
        pl.read_parquet(part).filter(pl.col("offset") < 3999).write_parquet(part)
    with pytest.raises(ModelRefused, match=r"3999 events are too few .*; collect at least 4000"):
        gather(planned, None)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
def test_a_checkpoint_that_cannot_be_read_is_said_and_the_fit_starts_from_nothing(
    planned: Plan, make_release: MakeRelease, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    checkpoint = planned.checkpoint("20260101-000000")
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(content)
    material = gathered(planned, make_release("20260101-000000"))
    assert material.checkpoint == checkpoint
    network, learned_until = resume(material, planned)
    assert learned_until is None
    assert network.config.items == 70
    assert f"{checkpoint} is not readable" in capsys.readouterr().out


def test_a_checkpoint_that_is_not_there_is_said(
    planned: Plan, make_release: MakeRelease, capsys: pytest.CaptureFixture[str]
) -> None:
    material = gathered(planned, make_release("20260101-000000"))
    assert resume(material, planned)[1] is None
    assert "no checkpoint of 20260101-000000" in capsys.readouterr().out
