"""Whatever a crash leaves of a merge: each click is read once, none is lost, an erasure reaches all copies."""

from pathlib import Path

import polars as pl
import pytest

from schemas.errors import ContractError
from tests.unit.trainer.log import PowerCutError
from tests.unit.trainer.shop import START_MS, clicks_of
from trainer import parts as module
from trainer.parts import erase, merge_parts, part_name, read_parts, remove_leftovers, write_parts

DAY_MS = 24 * 3600 * 1000


def write(folder: Path, partition: int, start: int, count: int, day: int = 0, user: str = "u") -> None:
    """A part of `count` clicks from offset `start` on; event ids tell partition and offset."""
    rows = clicks_of([(user, f"i{n}", START_MS + day * DAY_MS + n) for n in range(count)]).with_columns(
        pl.Series("event_id", [f"{partition}-{start + n}" for n in range(count)]),
        pl.lit(100, pl.Int64).alias("produced_at"),
        pl.lit(partition, pl.Int32).alias("partition"),
        pl.Series("offset", range(start, start + count), pl.Int64),
    )
    write_parts(folder, part_name(partition, start), rows)


def ids(folder: Path) -> list[str]:
    return read_parts(folder)["event_id"].to_list()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("day=*/*.parquet"))


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Six small parts of a finished day, two partitions; two later days of one part each."""
    for partition in (0, 1):
        for start in (0, 5, 10):
            write(tmp_path, partition, start, 5)
    for day in (1, 2):
        write(tmp_path, 0, 100 * day, 3, day)
    return tmp_path


def test_parts_of_a_finished_day_become_one(finished: Path) -> None:
    before = ids(finished)
    assert merge_parts(finished) == 5
    assert [len(list(day.iterdir())) for day in sorted(finished.iterdir())] == [1, 1, 1]
    assert ids(finished) == before
    assert merge_parts(finished) == 0


def test_days_that_grow_are_merged_only_when_they_have_many_parts(tmp_path: Path) -> None:
    for start in range(module.MERGE_GROWING - 1):
        write(tmp_path, 0, start, 1)
    assert merge_parts(tmp_path) == 0
    write(tmp_path, 0, module.MERGE_GROWING - 1, 1)
    assert merge_parts(tmp_path) == module.MERGE_GROWING - 1
    write(tmp_path, 1, 0, 1)  # goes on beside the merged part
    assert len(files(tmp_path)) == 2
    assert len(ids(tmp_path)) == module.MERGE_GROWING + 1


def test_large_parts_are_left_as_they_are(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL_BYTES", 1)
    before = {file: file.read_bytes() for file in files(finished)}
    assert merge_parts(finished) == 0
    assert {file: file.read_bytes() for file in files(finished)} == before


def test_a_merge_takes_so_many_parts_at_most(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MERGE_MOST", 2)
    before = ids(finished)
    assert merge_parts(finished) == 5
    assert ids(finished) == before


@pytest.mark.parametrize("removed", range(6))
@pytest.mark.parametrize("grown", [False, True])
def test_a_crash_between_write_and_remove_loses_and_doubles_nothing(
    finished: Path, monkeypatch: pytest.MonkeyPatch, removed: int, grown: bool
) -> None:
    before, left = ids(finished), removed
    unlink = Path.unlink

    def cut(path: Path) -> None:
        nonlocal left
        if left == 0:
            raise PowerCutError
        left -= 1
        unlink(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", cut)
        if removed < 5:
            with pytest.raises(PowerCutError):
                merge_parts(finished)
        else:
            merge_parts(finished)
    assert len(files(finished)) == 8 - removed
    assert ids(finished) == before
    if grown:  # the merged part is no longer small: the others meet it as what they must not repeat
        monkeypatch.setattr(module, "SMALL_BYTES", files(finished)[0].stat().st_size)
    write(finished, 2, 0, 1)  # a late click, so that there is something to merge
    merge_parts(finished)
    assert ids(finished) == [*before, "2-0"]
    rows = pl.concat(pl.read_parquet(file) for file in files(finished))
    assert rows.height == len(before) + 1, "a click is on disk twice"


def test_a_crash_before_a_merge_is_whole_changes_nothing(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file: file.read_bytes() for file in files(finished)}

    def cut(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", cut)
        with pytest.raises(PowerCutError):
            merge_parts(finished)
    assert {file: file.read_bytes() for file in files(finished)} == before
    assert len(list(finished.glob("day=*/.*"))) == 1
    remove_leftovers(finished)
    assert list(finished.glob("day=*/.*")) == []


def test_an_erasure_between_a_crash_and_the_next_merge_holds(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(finished, 0, 15, 2, user="gone")

    def cut(_: Path) -> None:
        raise PowerCutError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", cut)
        with pytest.raises(PowerCutError):
            merge_parts(finished)
    erase(finished, pl.DataFrame({"user_id": ["gone"], "asked_at": [200]}))
    assert "gone" not in read_parts(finished)["user_id"]
    merge_parts(finished)
    for file in files(finished):
        assert "gone" not in pl.read_parquet(file)["user_id"]
    assert read_parts(finished).height == 36


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all, but long enough to be read as one"])
def test_a_damaged_part_is_named_with_what_to_do(finished: Path, damage: bytes) -> None:
    part = files(finished)[3]
    part.write_bytes(damage)
    remedy = f"remove {finished.parent} to collect again all that Kafka still has"
    somebody = pl.DataFrame({"user_id": ["x"], "asked_at": [0]})
    for work in (read_parts, merge_parts, lambda folder: erase(folder, somebody)):
        with pytest.raises(ContractError, match=part.name) as error:
            work(finished)
        assert str(part) in error.value.cause
        assert remedy in error.value.remedy


def test_a_part_cut_short_is_named(finished: Path) -> None:
    part = files(finished)[0]
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(ContractError, match=part.name):
        read_parts(finished)
