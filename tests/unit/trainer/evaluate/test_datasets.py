import gzip
from pathlib import Path

import polars as pl
import pytest

from schemas.click import ACTIONS
from schemas.errors import ConfigError, ContractError
from trainer.evaluate.datasets import LOADERS, load
from trainer.evaluate.events import Events


def folder_of(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        raw = text.encode("latin-1" if name == "movies.dat" else "utf-8")
        (path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path


def rows(events: Events) -> list[tuple[str, str, int, int]]:
    return events.frame.select("user_id", "item_id", "event_time", "action").rows()


def words(events: Events) -> list[str]:
    """Items in the order of each user."""
    histories = events.histories(50, repeats=True)
    ids = [events.vocabulary.ids[index - 1] for index in histories.item_index]
    begins = sorted(set(histories.first.tolist()))
    return [" ".join(ids[a:b]) for a, b in zip(begins, [*begins[1:], len(ids)], strict=True)]


MOVIELENS_1M = {
    "movies.dat": "11::Café (1999)::Drama|War\n12::Two (2000)::Comedy\n13::Never rated (2001)::Comedy\n",
    "sas_to_original_items.txt": "1 12\n2 11\n",
    "sas_to_original_users.txt": "1 77\n2 66\n",
    "sasrec_ml-1m.txt.gz": "1 2\n1 1\n2 1\n",
    "derived_ratings_all_bracketed_ts.csv.gz": "user,movie,rating,timestamp,exact,ts_low,ts_high,sasrec_position\n"
    "77,12,5,978300700,1,0,0,1\n77,11,3,978300760,1,0,0,0\n66,12,4,978300000,1,0,0,0\n66,13,1,978309999,1,0,0,-1\n",
}


def test_movielens_1m_in_its_three_forms(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, MOVIELENS_1M)
    order = load(folder, "movielens-1m-sasrec")
    assert (order.clock, words(order)) == ("place", ["2 1", "1"])
    assert order.titles == {"1": "Two (2000). Comedy", "2": "Café (1999). Drama, War"}
    timed = load(folder, "movielens-1m-sasrec-times")
    assert (timed.clock, words(timed), timed.titles) == ("time", ["2 1", "1"], order.titles)
    assert timed.frame["event_time"].to_list()[-1] == 978300760000  # times never go back
    whole = load(folder, "movielens-1m")
    assert words(whole) == ["12 13", "12 11"]
    assert whole.titles["11"] == "Café (1999). Drama, War"


def test_movielens_100k(tmp_path: Path) -> None:
    files = {
        "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t5\t3\t881250949\n",
        "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '5\t"Quoted" Film\t1995\tDrama War\n',
    }
    events = load(folder_of(tmp_path, files), "movielens-100k")
    assert rows(events) == [("1", "5", 881250949000, ACTIONS.index("CLICK"))]
    assert events.titles == {"5": '"Quoted" Film (1995). Drama War'}


def test_amazon_beauty(tmp_path: Path) -> None:
    files = {
        "beauty_sequential_data.txt.gz": "1 7 8 9\n2 9 7\n",
        "derived_s3rec_beauty_items.tsv.gz": 's3rec_item\tp5_item\tasin\ttitle\n1\t7\tB1\tRed "4"\n2\t8\tB2\t\n',
    }
    events = load(folder_of(tmp_path, files), "amazon-beauty")
    assert (events.clock, words(events), events.titles) == ("place", ["7 8 9", "9 7"], {"7": 'Red "4"'})


def test_kuairand_with_and_without_what_was_only_shown(tmp_path: Path) -> None:
    shown = pl.DataFrame(
        {"user_id": [1, 1], "video_id": [5, 6], "time_ms": [10**12, 10**12 + 1], "is_click": [0, 1], "is_like": [0, 0]}
    )
    shown.write_parquet(tmp_path / "val_0425-0430.parquet")
    shown.with_columns(is_like=pl.lit(1, pl.Int64)).write_parquet(tmp_path / "test_0501-0508.parquet")
    everything = load(tmp_path, "kuairand-impressions")
    assert [ACTIONS[row[3]] for row in rows(everything)] == ["IMPRESSION", "CLICK", "IMPRESSION", "LIKE"]
    clicked = load(tmp_path, "kuairand")
    assert [(row[1], ACTIONS[row[3]]) for row in rows(clicked)] == [("6", "CLICK"), ("6", "LIKE")]


def test_online_retail_leaves_out_returns_and_strangers(tmp_path: Path) -> None:
    head = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    lines = [
        '1,85123A," LANTERN, WHITE ",6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom\n',
        "C2,85123A,LANTERN,-6,2010-12-01 09:26:00,2.55,17850.0,United Kingdom\n",
        "3,71053,BOX,1,2010-12-01 10:26:00,2.55,,United Kingdom\n",
    ]
    files = {"online_retail_by_day_concatenated.csv.gz": head + "".join(lines)}
    events = load(folder_of(tmp_path, files), "online-retail")
    assert rows(events) == [("17850", "85123A", 1291191960000, ACTIONS.index("PURCHASE"))]
    assert events.titles == {"85123A": "LANTERN, WHITE"}
    assert any(note.startswith("2 of 3 rows") for note in events.notes)


def test_yoochoose_is_both_parts(tmp_path: Path) -> None:
    head = "SessionId\tItemId\tTime\n"
    files = {
        "yoochoose-clicks-100k_train_full.txt": f"{head}3\t20\t1396437466.94\n",
        "yoochoose-clicks-100k_test.txt": f"{head}4\t21\t1396860669.277\n",
    }
    events = load(folder_of(tmp_path, files), "yoochoose-100k")
    assert [row[:3] for row in rows(events)] == [("3", "20", 1396437466940), ("4", "21", 1396860669277)]


@pytest.mark.parametrize("name", LOADERS)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ContractError):
        load(tmp_path, name)
    with pytest.raises(ConfigError, match="there is no folder"):
        load(tmp_path / "none", name)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="known ones are events, movielens-1m"):
        load(tmp_path, "netflix")
