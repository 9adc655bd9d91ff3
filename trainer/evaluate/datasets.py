"""Ready loaders for public data sets, each from a folder with the files as their publishers name them.

`python -m trainer evaluate FOLDER --format NAME`. None of the data belongs to this project; the folder's own
notes say what may be done with it.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import polars as pl

from schemas.click import ACTIONS
from schemas.errors import ConfigError, ContractError
from trainer.evaluate.events import Events, events_of, read_events

# What the format of a plain file of events is called.
EVENTS_FORMAT = "events"

Loader = Callable[[Path], Events]


def read(
    source: Path,
    form: str,
    items: Path | None = None,
    time_column: str | None = None,
    limit_users: int | None = None,
) -> Events:
    """The events of a file, or of a named data set's folder. Raises ConfigError, ContractError."""
    events = read_events(source, items, time_column) if form == EVENTS_FORMAT else load(source, form)
    return events if limit_users is None else events.of_some_users(limit_users)


def load(folder: Path, name: str) -> Events:
    """The events of a named data set. Raises ConfigError for other names, ContractError for files that do not fit."""
    if name not in LOADERS:
        raise ConfigError(f"--format {name} is unknown", f"known ones are events, {', '.join(LOADERS)}")
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", f"--format {name} reads the files of a folder")
    try:
        return LOADERS[name](folder)
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ContractError(f"{folder} is not {name}: {reason}", "use the files as published") from error


def _csv(path: Path, separator: str = ",", header: list[str] | None = None) -> pl.DataFrame:
    """A table of text columns."""
    return pl.read_csv(
        path, separator=separator, infer_schema=False, has_header=header is None, new_columns=header,
        quote_char='"' if separator == "," else None,
    )  # fmt: skip


def _movielens_1m_titles(folder: Path) -> dict[str, str]:
    """Title and genres by the original movie id."""
    rows = [line.split("::") for line in (folder / "movies.dat").read_text("latin-1").splitlines()]
    return {movie: f"{title}. {genres.replace('|', ', ')}" for movie, title, genres in rows}


def _movielens_1m_sasrec_titles(folder: Path) -> dict[str, str]:
    titles = _movielens_1m_titles(folder)
    pairs = _csv(folder / "sas_to_original_items.txt", " ", ["item", "movie"])
    return {item: titles[movie] for item, movie in pairs.iter_rows() if movie in titles}


def _movielens_1m_sasrec(folder: Path) -> Events:
    """The file most published tables stand on: the order within each user, no times."""
    table = _csv(folder / "sasrec_ml-1m.txt.gz", " ", ["user_id", "item_id"])
    table = table.with_columns(pl.int_range(pl.len()).over("user_id").alias("time"))
    return events_of(table, _movielens_1m_sasrec_titles(folder), "movielens-1m-sasrec", clock="place")


def _movielens_1m_sasrec_times(folder: Path) -> Events:
    """The same events in the same order, with times (those of users from 3000 on are interpolated)."""
    rated = _csv(folder / "derived_ratings_all_bracketed_ts.csv.gz").filter(pl.col("sasrec_position").cast(int) >= 0)
    users = _csv(folder / "sas_to_original_users.txt", " ", ["user_id", "user"])
    items = _csv(folder / "sas_to_original_items.txt", " ", ["item_id", "movie"])
    joined = rated.join(users, on="user").join(items, on="movie").sort(pl.col("sasrec_position").cast(int))
    # Where interpolation and published order disagree, the order rules: times never go back within a user.
    table = joined.select("user_id", "item_id", pl.col("timestamp").cast(int).cum_max().over("user_id").alias("time"))
    return events_of(table, _movielens_1m_sasrec_titles(folder), "movielens-1m-sasrec-times")


def _movielens_1m(folder: Path) -> Events:
    """All ratings with times (those of users from 3000 on are interpolated between known ones)."""
    rated = _csv(folder / "derived_ratings_all_bracketed_ts.csv.gz")
    table = rated.select(
        pl.col("user").alias("user_id"), pl.col("movie").alias("item_id"), pl.col("timestamp").alias("time")
    )
    return events_of(table, _movielens_1m_titles(folder), "movielens-1m")


def _movielens_100k(folder: Path) -> Events:
    table = _csv(folder / "ml-100k.inter", "\t", ["user_id", "item_id", "rating", "time"]).slice(1)
    items = _csv(folder / "ml-100k.item", "\t", ["item_id", "title", "year", "genres"]).slice(1)
    titles = {item: f"{title} ({year}). {genres}" for item, title, year, genres in items.iter_rows()}
    return events_of(table, titles, "movielens-100k")


def _amazon_beauty(folder: Path) -> Events:
    """A line is a user and the items in order; the numbers are those of P5."""
    with gzip.open(folder / "beauty_sequential_data.txt.gz", "rt") as file:
        lines = [line.split() for line in file]
    named = _csv(folder / "derived_s3rec_beauty_items.tsv.gz", "\t").drop_nulls("title")
    table = pl.DataFrame({"user_id": [line[0] for line in lines], "item_id": [line[1:] for line in lines]})
    table = table.explode("item_id").with_columns(pl.int_range(pl.len()).over("user_id").alias("time"))
    titles = dict(named.select("p5_item", "title").iter_rows())
    return events_of(table, titles, "amazon-beauty", clock="place")


def _kuairand_impressions(folder: Path) -> Events:
    """Everything shown: clicked is CLICK, or LIKE when liked, too; the rest is IMPRESSION, context and no target."""
    parts = [folder / "val_0425-0430.parquet", folder / "test_0501-0508.parquet"]
    shown = pl.concat([pl.read_parquet(part, columns=_KUAIRAND_COLUMNS) for part in parts])
    clicked = pl.when(pl.col("is_like") == 1).then(pl.lit("LIKE")).otherwise(pl.lit("CLICK"))
    table = shown.select(
        pl.col("user_id").cast(pl.String),
        pl.col("video_id").cast(pl.String).alias("item_id"),
        pl.col("time_ms").alias("time"),
        pl.when(pl.col("is_click") == 1).then(clicked).otherwise(pl.lit("IMPRESSION")).alias("action"),
    )
    return events_of(table, {}, "kuairand-impressions")


def _kuairand(folder: Path) -> Events:
    """What was clicked alone."""
    shown = _kuairand_impressions(folder).frame
    clicked = shown.filter(pl.col("action") != ACTIONS.index("IMPRESSION"))
    table = clicked.select("user_id", "item_id", pl.col("event_time").alias("time"), "action")
    return events_of(table, {}, "kuairand", [f"{len(shown) - len(clicked)} impressions without a click left out"])


def _online_retail(folder: Path) -> Events:
    """Purchases of known customers; returns left out. All lines of an invoice bear one time, in minutes."""
    sold = _csv(folder / "online_retail_by_day_concatenated.csv.gz")
    bought = sold.filter(pl.col("Quantity").cast(int) > 0, pl.col("CustomerID").is_not_null())
    table = bought.select(
        pl.col("CustomerID").cast(float).cast(int).cast(pl.String).alias("user_id"),
        pl.col("StockCode").alias("item_id"),
        pl.col("InvoiceDate").str.to_datetime(time_unit="ms").alias("time"),
        pl.lit("PURCHASE").alias("action"),
    )
    named = bought.drop_nulls("Description").unique("StockCode", keep="first", maintain_order=True)
    titles = dict(named.select("StockCode", pl.col("Description").str.strip_chars()).iter_rows())
    notes = [f"{len(sold) - len(bought)} of {len(sold)} rows are returns or have no customer: left out"]
    return events_of(table, titles, "online-retail", notes)


def _yoochoose_100k(folder: Path) -> Events:
    """Clicks; a session is all that is known of a user."""
    parts = [_csv(folder / f"yoochoose-clicks-100k_{part}.txt", "\t") for part in ("train_full", "test")]
    table = pl.concat(parts).select(
        pl.col("SessionId").alias("user_id"), pl.col("ItemId").alias("item_id"), pl.col("Time").alias("time")
    )
    return events_of(table, {}, "yoochoose-100k")


_KUAIRAND_COLUMNS = ["user_id", "video_id", "time_ms", "is_click", "is_like"]

LOADERS: dict[str, Loader] = {
    "movielens-1m-sasrec": _movielens_1m_sasrec,
    "movielens-1m-sasrec-times": _movielens_1m_sasrec_times,
    "movielens-1m": _movielens_1m,
    "movielens-100k": _movielens_100k,
    "amazon-beauty": _amazon_beauty,
    "kuairand": _kuairand,
    "kuairand-impressions": _kuairand_impressions,
    "online-retail": _online_retail,
    "yoochoose-100k": _yoochoose_100k,
}
