import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.click import Click, encode_click
from schemas.errors import ContractError
from schemas.item import Item, encode_item
from tests.unit.trainer.log import Log, PowerCutError
from tests.unit.trainer.shop import START_MS
from trainer import collect as module
from trainer.collect import collect_from, mark_seen, stored_catalogue, stored_clicks, stored_items, unseen_clicks
from trainer.config import Settings

DAY_MS = 24 * 3600 * 1000


def click(log: Log, number: int, user: str = "u", partition: int = 0, **more: Any) -> None:
    event = Click(f"e{number}", user, f"i{number % 7}", START_MS + number * DAY_MS // 4)
    log.append("clicks", user, encode_click(event), partition=partition, **more)


def collect(log: Log, folder: Path) -> module.Collected:
    return collect_from(log, Settings(), folder)  # type: ignore[arg-type]


def event_ids(folder: Path) -> list[str]:
    return sorted(stored_clicks(folder)["event_id"])


def test_clicks_are_stored_once_by_their_day(tmp_path: Path) -> None:
    log = Log()
    for number in range(8):
        click(log, number, partition=number % 2)
    assert collect(log, tmp_path).clicks == 8
    assert event_ids(tmp_path) == [f"e{n}" for n in range(8)]
    days = {part.parent.name: part.name for part in (tmp_path / "clicks").glob("*/*.parquet")}
    assert len(days) == 3
    for part in (tmp_path / "clicks").glob("*/*.parquet"):
        rows = pl.read_parquet(part)
        written = pl.from_epoch(rows["event_time"], "ms").dt.strftime("day=%Y-%m-%d").unique()
        assert written.to_list() == [part.parent.name]


def test_a_clock_that_is_behind_leaves_no_current_event_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    click(log, 0, produced_at=START_MS)
    click(log, 1, produced_at=START_MS)
    monkeypatch.setattr("time.time", lambda: START_MS / 1000 - 3600)
    assert collect(log, tmp_path).clicks == 1, "the second one is hours ahead of any clock"
    assert event_ids(tmp_path) == ["e0"]


def test_a_second_pass_reads_only_what_is_new(tmp_path: Path) -> None:
    log = Log()
    click(log, 0)
    collect(log, tmp_path)
    click(log, 1)
    assert collect(log, tmp_path).clicks == 1
    assert collect(log, tmp_path).clicks == 0
    assert event_ids(tmp_path) == ["e0", "e1"]


def test_a_pass_repeated_after_a_crash_replaces_its_own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    for number in range(6):
        click(log, number)

    def power_cut(*_: Any) -> None:
        raise PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(module.Offsets, "store", power_cut)
        with pytest.raises(PowerCutError):
            collect(log, tmp_path)
    left = sorted(path.name for path in (tmp_path / "clicks").glob("*/*.parquet"))
    click(log, 6)  # more has come meanwhile
    collect(log, tmp_path)
    parts = sorted(path.name for path in (tmp_path / "clicks").glob("*/*.parquet"))
    assert set(left) == set(parts)  # same names: written over, not beside
    rows = pl.concat(pl.read_parquet(p) for p in (tmp_path / "clicks").glob("*/*.parquet"))
    assert sorted(rows["event_id"]) == [f"e{n}" for n in range(7)]


def test_parts_begin_at_fixed_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_MESSAGES", 4)
    log = Log()
    for number in range(6):
        click(log, 0 if number else 1)
    collect(log, tmp_path)
    names = {path.name for path in (tmp_path / "clicks").glob("*/*.parquet")}
    assert names == {"00000-000000000000.parquet", "00000-000000000004.parquet"}


def test_the_same_event_twice_counts_once(tmp_path: Path) -> None:
    log = Log()
    for partition in (0, 1, 0):
        click(log, 3, partition=partition)
    assert collect(log, tmp_path).clicks == 3
    kept = stored_clicks(tmp_path)
    assert kept.select("partition", "offset").rows() == [(0, 0)]


def test_bad_records_are_counted_and_left_out(tmp_path: Path) -> None:
    log = Log()
    click(log, 0)
    log.append("clicks", "u", b"no avro")
    log.append("clicks", "another", log.records["clicks"][0][0].value())  # key is not user_id
    collected = collect(log, tmp_path)
    assert (collected.clicks, collected.bad_clicks) == (1, 2)


def test_expired_offsets_are_named_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log()
    for number in range(3):
        click(log, number)
    collect(log, tmp_path)
    for number in range(3, 9):
        click(log, number)
    log.low["clicks"] = 7
    log.records["clicks"][1] = log.records["clicks"][0][:0] + [None] * 9  # type: ignore[list-item]
    log.records["clicks"].pop()
    assert collect(log, tmp_path).lost == 4
    assert "offsets 3 to 6 expired before they were collected (4 messages lost)" in (capsys.readouterr().out)
    assert event_ids(tmp_path) == ["e0", "e1", "e2", "e7", "e8"]


def test_offsets_of_another_cluster_are_refused(tmp_path: Path) -> None:
    log = Log()
    click(log, 0)
    collect(log, tmp_path)
    log.cluster = "two"
    with pytest.raises(ContractError, match="from Kafka cluster one, this is two"):
        collect(log, tmp_path)


def test_a_topic_made_anew_is_refused(tmp_path: Path) -> None:
    log = Log()
    for number in range(3):
        click(log, number)
    collect(log, tmp_path)
    del log.records["clicks"][0][1:]
    with pytest.raises(ContractError, match="ends at 1, but 3 was read"):
        collect(log, tmp_path)


def test_an_erased_user_is_gone_from_every_part(tmp_path: Path) -> None:
    log = Log()
    click(log, 0, "gone", produced_at=100)
    click(log, 1, "stays", produced_at=100)
    collect(log, tmp_path)
    click(log, 2, "gone", produced_at=199)  # not collected yet when it is erased
    log.append("erasures", "gone", None, produced_at=200)
    click(log, 3, "gone", produced_at=201)  # came back afterwards: a new beginning
    assert collect(log, tmp_path).erased_users == 1
    assert event_ids(tmp_path) == ["e1", "e3"]
    for part in (tmp_path / "clicks").glob("*/*.parquet"):
        assert "e0" not in pl.read_parquet(part)["event_id"]
    assert collect(log, tmp_path).erased_users == 0


def test_an_erasure_reaches_what_a_crash_left_half_written(tmp_path: Path) -> None:
    log = Log()
    click(log, 0, "gone", produced_at=100)
    collect(log, tmp_path)
    [part] = (tmp_path / "clicks").glob("*/*.parquet")
    left = part.with_name(".00009-000000000000.parquet.tmp")  # of a part that no later pass writes again
    left.write_bytes(part.read_bytes()[:-50])
    log.append("erasures", "gone", None, produced_at=200)
    collect(log, tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("name", ["offsets.json", "items.parquet"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    log = Log()
    click(log, 0)
    log.append("items", "a", encode_item(Item("a")))
    collect(log, tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    log.append("items", "b", encode_item(Item("b")))
    with pytest.raises(ContractError, match=f"{name} is damaged .* remove {tmp_path} to collect again"):
        collect(log, tmp_path)


def test_many_short_passes_leave_few_parts(tmp_path: Path) -> None:
    log = Log()
    for number in range(60):  # four clicks a day, one a pass
        click(log, number, partition=number % 2)
        collect(log, tmp_path)
    assert event_ids(tmp_path) == sorted(f"e{n}" for n in range(60))
    parts = list((tmp_path / "clicks").glob("*/*.parquet"))
    assert len(parts) <= 15 + 2 * 3  # a part a day, but for the two days that still grow
    log.append("erasures", "u", None, produced_at=1)
    collect(log, tmp_path)
    assert event_ids(tmp_path) == []


def test_the_catalogue_holds_the_last_word_on_each_item(tmp_path: Path) -> None:
    log = Log()
    for item in (Item("a", "first", price=1.0), Item("b", "other", ["x"]), Item("c", "third")):
        log.append("items", item.item_id, encode_item(item))
    collect(log, tmp_path)
    log.append("items", "a", encode_item(Item("a", "second", available=False)))
    log.append("items", "c", None)
    log.append("items", "d\ne", encode_item(Item("d\ne")))  # would break the items file
    collect(log, tmp_path)
    rows = stored_items(tmp_path).select("item_id", "title", "categories", "available").rows()
    assert rows == [("a", "second", [], False), ("b", "other", ["x"], True)]


def test_an_item_that_is_gone_is_remembered_as_gone(tmp_path: Path) -> None:
    log = Log()
    for item in (Item("a", "first"), Item("b", "other")):
        log.append("items", item.item_id, encode_item(item))
    collect(log, tmp_path)
    log.append("items", "a", None)
    log.append("items", "never-seen", None)
    collect(log, tmp_path)
    gone = stored_catalogue(tmp_path).filter("gone").select("item_id", "title", "available").rows()
    assert gone == [("a", "first", False), ("never-seen", None, False)]
    assert stored_items(tmp_path)["item_id"].to_list() == ["b"]
    log.append("items", "a", encode_item(Item("a", "back")))
    collect(log, tmp_path)
    assert stored_items(tmp_path).select("item_id", "title", "available").rows() == [
        ("a", "back", True),
        ("b", "other", True),
    ]


def test_a_catalogue_from_before_gone_items_were_kept_is_read(tmp_path: Path) -> None:
    log = Log()
    log.append("items", "a", encode_item(Item("a", "first")))
    collect(log, tmp_path)
    file = tmp_path / "items.parquet"
    pl.read_parquet(file).drop("gone").write_parquet(file)
    assert stored_items(tmp_path)["item_id"].to_list() == ["a"]


def test_a_cycle_has_seen_what_it_was_marked_with(tmp_path: Path) -> None:
    log = Log()
    click(log, 0)
    collect(log, tmp_path)
    assert unseen_clicks(Settings(), tmp_path)
    mark_seen(Settings(), tmp_path)
    assert not unseen_clicks(Settings(), tmp_path)
    click(log, 1)
    collect(log, tmp_path)
    assert unseen_clicks(Settings(), tmp_path)
    assert json.loads((tmp_path / "offsets.json").read_text())["next"]["clicks"]["0"] == 2
