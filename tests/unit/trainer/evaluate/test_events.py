import gzip
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from schemas.click import ACTIONS
from schemas.errors import ConfigError, ContractError
from trainer.evaluate.events import ORDER_BEGINS_MS, PERIOD_STEP_MS, Events, read_events

MOMENT_MS = 1_700_000_000_000


def read(folder: Path, text: str, name: str = "events.csv", **options: object) -> Events:
    (folder / name).write_text(text)
    return read_events(folder / name, **options)  # type: ignore[arg-type]


def times(events: Events) -> list[int]:
    return events.frame["event_time"].to_list()


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        (f"{MOMENT_MS}", "milliseconds"),
        (f"{MOMENT_MS // 1000}", "seconds"),
        (f"{MOMENT_MS // 1000}.0", "seconds"),
        (f"{MOMENT_MS}000", "microseconds"),
        (f"{MOMENT_MS}000000", "nanoseconds"),
        ("2023-11-14T22:13:20", "a date"),
        ("2023-11-14 22:13:20", "a date"),
    ],
)
def test_the_unit_of_time_is_told_by_its_size_and_said(tmp_path: Path, written: str, understood: str) -> None:
    events = read(tmp_path, f"user_id,item_id,event_time\nu,a,{written}\nu,b,{written}\n")
    assert times(events) == [MOMENT_MS] * 2
    assert events.clock == "time"
    assert any(understood in note for note in events.notes)


def test_fractions_of_a_second_are_kept(tmp_path: Path) -> None:
    events = read(tmp_path, "user_id\titem_id\ttimestamp\nu\ta\t1396437466.94\nu\tb\t1396437467\n", "log.tsv")
    assert times(events) == [1396437466940, 1396437467000]


def test_orders_and_periods_take_the_place_of_time(tmp_path: Path) -> None:
    order = read(tmp_path, "user_id,item_id,order\nu,a,7\nu,b,9\nv,a,0\n")
    assert order.clock == "order"
    assert times(order) == [ORDER_BEGINS_MS + 1000 * n for n in (7, 9, 0)]
    period = read(tmp_path, "user_id,item_id,period\nu,a,3\nu,b,3\nv,a,5\n")
    assert period.clock == "period"
    assert times(period) == [ORDER_BEGINS_MS + PERIOD_STEP_MS * n for n in (0, 0, 2)]
    assert period.period_moments is not None
    assert period.period_moments.tolist() == [ORDER_BEGINS_MS, ORDER_BEGINS_MS + 2 * PERIOD_STEP_MS]


def test_a_period_beside_a_time_parts_the_events(tmp_path: Path) -> None:
    text = f"user_id,item_id,event_time,period\nu,a,{MOMENT_MS},1\nu,b,{MOMENT_MS + 5},1\nu,c,{MOMENT_MS + 9},2\n"
    events = read(tmp_path, text)
    assert events.period_moments is not None
    assert events.period_moments.tolist() == [MOMENT_MS, MOMENT_MS + 9]
    with pytest.raises(ContractError, match="begins before the one before it ends"):
        read(tmp_path, text.replace(f"{MOMENT_MS + 9},2", f"{MOMENT_MS + 3},2"))


def test_events_of_one_moment_keep_the_order_of_the_file(tmp_path: Path) -> None:
    items = [f"i{n}" for n in np.random.default_rng(0).permutation(200)]
    events = read(tmp_path, "user_id,item_id,event_time\n" + "".join(f"u,{item},{MOMENT_MS}\n" for item in items))
    assert events.frame["event_hash"].to_list() == list(range(200))
    assert events.frame["event_hash"].dtype == pl.UInt64
    histories = events.histories(50, repeats=False)
    assert [events.vocabulary.ids[index - 1] for index in histories.item_index] == items


def test_ids_are_text_and_keep_their_zeros(tmp_path: Path) -> None:
    events = read(tmp_path, f"user_id,item_id,event_time\n007,0001,{MOMENT_MS}\n7,1,{MOMENT_MS}\n")
    assert events.frame["user_id"].to_list() == ["007", "7"]
    assert sorted(events.vocabulary.ids) == ["0001", "1"]


def test_parquet_and_gzip_say_the_same_as_csv(tmp_path: Path) -> None:
    text = f"user_id,item_id,event_time,action\n1,10,{MOMENT_MS},VIEW\n2,11,{MOMENT_MS},3\n"
    plain = read(tmp_path, text)
    (tmp_path / "events.csv.gz").write_bytes(gzip.compress(text.encode()))
    pl.DataFrame(
        {
            "user_id": [1.0, 2.0],  # as tools write whole numbers that once had gaps
            "item_id": [10, 11],
            "event_time": [datetime.fromtimestamp(MOMENT_MS / 1000, UTC)] * 2,
            "action": ["VIEW", "PURCHASE"],
        }
    ).write_parquet(tmp_path / "events.parquet")
    for name in ("events.csv.gz", "events.parquet"):
        other = read_events(tmp_path / name)
        assert other.frame.equals(plain.frame), name
    assert plain.frame["action"].to_list() == [ACTIONS.index("VIEW"), ACTIONS.index("PURCHASE")]


def test_an_index_says_nothing_of_time_or_popularity(tmp_path: Path) -> None:
    lines = [f"u{n},i{n:03d},{MOMENT_MS + n}\n" for n in range(100)]
    head = "user_id,item_id,event_time\n"
    forwards = read(tmp_path, head + "".join(lines)).vocabulary.ids
    assert forwards == read(tmp_path, head + "".join(lines[::-1])).vocabulary.ids
    assert forwards != sorted(forwards)


def test_rows_without_an_id_or_a_time_are_left_out_and_counted(tmp_path: Path) -> None:
    text = f"user_id,item_id,event_time\nu,a,{MOMENT_MS}\n,b,{MOMENT_MS}\nu,,{MOMENT_MS}\nu,c,\nu,d,soon\nu,e,0\n"
    events = read(tmp_path, text)
    assert events.frame["item_id"].to_list() == ["a"]
    said = " ".join(events.notes)
    assert "1 rows without user_id" in said
    assert "1 rows without item_id" in said
    assert "3 rows without time" in said


def test_words_come_from_the_events_and_from_a_second_file(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\nb,Bee\nz,\n")
    text = f"user_id,item_id,event_time,title\nu,a,{MOMENT_MS},Ant\nu,b,{MOMENT_MS},\nv,a,{MOMENT_MS},Antelope\n"
    assert read(tmp_path, text).titles == {"a": "Ant"}
    assert read(tmp_path, text, items=tmp_path / "items.csv").titles == {"a": "Ant", "b": "Bee"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user,item_id,event_time\nu,a,1\n", "no column user_id; it has user, item_id, event_time"),
        ("user_id,item,event_time\nu,a,1\n", "no column item_id; it has user_id, item, event_time"),
        ("user_id,item_id,when\nu,a,1\n", "no column of time.*the file has user_id, item_id, when"),
        ("user_id,item_id,event_time,action\nu,a,1,VIEW\nu,b,2,BUY\nu,b,2,9\n", "unknown actions: 9, BUY"),
        ("user_id,item_id,event_time\n", "no row has a time"),
        ("user_id,item_id,event_time\nu,a,never\n", "no event with a user, an item and a time"),
        ("user_id,item_id,event_time\n,a,1\n", "no event with a user"),
        ("user_id,item_id,event_time\nu,a,1,2,3\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.parquet", b"no parquet"),
        ("x.csv.gz", b"no gzip"),
        ("x.csv.gz", gzip.compress(b"user_id,item_id,event_time\nu,a,1\n")[:-12]),
        ("x.csv", b"user_id,item_id,event_time\n\xff\xfe,a,1\n"),
        ("x.csv", b"\xff\xfe\x00"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ContractError, match="cannot be read"):
        read_events(tmp_path / name)


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        read_events(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match="there is no file"):
        read_events(tmp_path)
    text = f"user_id,item_id,event_time,seen\nu,a,5,{MOMENT_MS}\n"
    assert times(read(tmp_path, text, time_column="seen")) == [MOMENT_MS]
    with pytest.raises(ContractError, match="no column watched"):
        read(tmp_path, text, time_column="watched")
    (tmp_path / "items.csv").write_text("item_id,name\na,Ant\n")
    with pytest.raises(ContractError, match="no column title or text"):
        read(tmp_path, text, items=tmp_path / "items.csv")


def test_some_users_are_the_same_ones_each_time(tmp_path: Path) -> None:
    events = read(tmp_path, "user_id,item_id,order\n" + "".join(f"u{n % 20},i{n},{n}\n" for n in range(100)))
    some = events.of_some_users(7)
    assert some.frame["user_id"].n_unique() == 7
    assert len(some.frame) == 35
    assert some.frame.equals(events.of_some_users(7).frame)
    assert len(events.of_some_users(99).frame) == 100
