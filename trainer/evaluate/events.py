"""Events of any shop, read from one CSV or Parquet file and checked before anything is computed.

    user_id, item_id   any text or whole numbers
    event_time         ms, s, µs or ns since 1970, a date, a plain running order, or a period: told apart by size
    action             optional; names or codes of schemas.click.ACTIONS, CLICK where there is none
    period             optional; periods of the file's own, for prequential runs
    title (or text)    optional; the item's words; or a second file with item_id and title

Rows without a user, an item or a time are left out and counted. Events of the same moment keep the file's order.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from schemas.click import ACTIONS, DEFAULT_ACTION
from schemas.errors import ConfigError, ContractError
from schemas.features import Vocabulary
from schemas.hashes import hash_ids
from trainer.sequences import Histories, Ints, histories

# What event_time counts. time: real. order: a running number of all events. place: only the order within each user is
# known. period: only the period is known.
Clock = Literal["time", "order", "place", "period"]
TIME_COLUMNS = ("event_time", "timestamp", "time", "order", "period")
TEXT_COLUMNS = ("title", "text")
# Orders and periods become times: they begin here (2000-01-01), since 0 marks an empty place in a history …
ORDER_BEGINS_MS = 946_684_800_000
# … and go on by a second or by a day: the units of the buckets of time that models read.
ORDER_STEP_MS, PERIOD_STEP_MS = 1000, 24 * 3600 * 1000
# Times of 1973 to 5138 in each unit do not overlap; below the first limit a number is an order.
_UNITS = (
    (1e8, "order", 0.0),
    (1e11, "seconds since 1970", 1e3),
    (1e14, "milliseconds since 1970", 1.0),
    (1e17, "microseconds since 1970", 1e-3),
    (np.inf, "nanoseconds since 1970", 1e-6),
)
# Bytes of a header that show what separates its columns.
_HEADER_BYTES = 64 * 1024


@dataclass(frozen=True)
class Events:
    """Events in the order of their file, and what was understood of it.

    frame: user_id, item_id (text), event_time (ms), action (code), event_hash (a running number: ties of time keep the
    order of the file), item_hash. titles: words by item_id. period_moments: when the file's own periods begin, ms.
    """

    frame: pl.DataFrame
    titles: dict[str, str]
    name: str
    clock: Clock
    notes: tuple[str, ...]
    period_moments: Ints | None = None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """All items with an event, by their hash: an order that says nothing of time or popularity."""
        items = self.frame.select("item_id", "item_hash").unique().sort("item_hash", "item_id")
        return Vocabulary(items["item_id"].to_list())

    def histories(self, history: int, repeats: bool) -> Histories:
        """The events as histories of at most `history` events read at once; see Histories for repeats."""
        return histories(self.frame, self.vocabulary, history, repeats)

    def of_some_users(self, most: int) -> Events:
        """The events of at most so many users, drawn by the hash of their ids: the same ones each time."""
        users = self.frame["user_id"].unique().sort()
        drawn = users.gather(np.argsort(hash_ids(users.to_list()))[:most])
        return replace(
            self,
            frame=self.frame.filter(pl.col("user_id").is_in(drawn.implode())),
            notes=(*self.notes, f"only {len(drawn)} of {len(users)} users"),
        )


def read_events(source: Path, items: Path | None = None, time_column: str | None = None) -> Events:
    """Read a file of events. Raises ConfigError when there is none, ContractError when it does not hold them."""
    raw = read_table(source)
    time_name = _time_column(raw, source, time_column)
    for needed in ("user_id", "item_id"):
        _require(needed, raw, source)
    titles = _titles(raw)
    if items is not None:
        table = read_table(items)
        _require("item_id", table, items)
        if not set(TEXT_COLUMNS) & set(table.columns):
            raise ContractError(f"{items} has no column title or text", f"it has {', '.join(table.columns)}")
        titles |= _titles(table)
    columns = {"user_id": _ids(raw["user_id"]), "item_id": _ids(raw["item_id"]), "time": raw[time_name]}
    if "action" in raw.columns:
        columns["action"] = raw["action"]
    if "period" in raw.columns and time_name != "period":
        columns["period"] = raw["period"]
    return events_of(
        pl.DataFrame(columns), titles, source.name.split(".")[0], [f"time is read from column {time_name}"],
        is_period=time_name == "period",
    )  # fmt: skip


def events_of(
    table: pl.DataFrame,
    titles: dict[str, str],
    name: str,
    notes: Sequence[str] = (),
    clock: Clock | None = None,
    is_period: bool = False,
) -> Events:
    """Events of a table with user_id, item_id (text), time, and perhaps action and period; see the module.

    clock: what time is, where that is known; None tells it from its size. Raises ContractError.
    """
    said = list(notes)
    time, understood, clock = _clocked(table["time"], clock, is_period)
    said.append(f"time is {understood}")
    whole = table.with_columns(time.alias("event_time"))
    lacking = {
        "user_id": pl.col("user_id").is_null() | (pl.col("user_id") == ""),
        "item_id": pl.col("item_id").is_null() | (pl.col("item_id") == ""),
        "time": pl.col("event_time").is_null(),
    }
    for column, is_lacking in lacking.items():
        if count := whole.select(is_lacking.sum()).item():
            said.append(f"{count} rows without {column} left out")
    whole = whole.filter(~pl.any_horizontal(*lacking.values()))
    if whole.is_empty():
        raise ContractError(f"{name} holds no event with a user, an item and a time", f"of {len(table)} rows none does")
    if "action" in whole.columns:
        whole = whole.with_columns(_action_codes(whole["action"], name))
    else:
        whole = whole.with_columns(pl.lit(ACTIONS.index(DEFAULT_ACTION), pl.UInt8).alias("action"))
    moments = _period_moments(whole, name) if "period" in whole.columns else None
    if clock == "period":
        moments = whole["event_time"].unique().sort().to_numpy()
    items = whole["item_id"].unique().sort()
    hashes = pl.DataFrame({"item_id": items, "item_hash": hash_ids(items.to_list())})
    frame = (
        whole.with_row_index("event_hash")
        .join(hashes, on="item_id", how="left", maintain_order="left")
        .select("user_id", "item_id", "event_time", "action", pl.col("event_hash").cast(pl.UInt64), "item_hash")
    )
    return Events(frame, titles, name, clock, tuple(said), moments)


def read_table(path: Path) -> pl.DataFrame:
    """A Parquet file, or a CSV or TSV one (perhaps gzipped) with a header, all of its columns as text."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", "give a CSV or Parquet file of events, or --format of a folder")
    try:
        if path.suffix in (".parquet", ".pq"):
            return pl.read_parquet(path)
        return pl.read_csv(path, separator=_separator(path), infer_schema=False)
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ContractError(f"{path} cannot be read: {reason}", "give a CSV file with a header, or Parquet") from error


def _separator(path: Path) -> str:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        header = file.readline(_HEADER_BYTES).decode()
    return max(",\t;|", key=header.count)


def _require(column: str, table: pl.DataFrame, source: Path) -> None:
    if column not in table.columns:
        raise ContractError(f"{source} has no column {column}", f"it has {', '.join(table.columns)}")


def _time_column(table: pl.DataFrame, source: Path, asked: str | None) -> str:
    if asked is not None:
        _require(asked, table, source)
        return asked
    for name in TIME_COLUMNS:
        if name in table.columns:
            return name
    raise ContractError(
        f"{source} has no column of time: none of {', '.join(TIME_COLUMNS)}",
        f"name it with --time-column; the file has {', '.join(table.columns)}",
    )


def _ids(column: pl.Series) -> pl.Series:
    """Ids as text; whole numbers that some tool has stored as floats lose their .0 again."""
    if column.dtype.is_float() and (column.drop_nulls() % 1 == 0).all():
        column = column.cast(pl.Int64, strict=False)
    return column.cast(pl.String)


def _titles(table: pl.DataFrame) -> dict[str, str]:
    """The first text of each item."""
    for name in TEXT_COLUMNS:
        if name in table.columns and "item_id" in table.columns:
            named = pl.DataFrame({"item": _ids(table["item_id"]), "text": table[name].cast(pl.String)}).drop_nulls()
            first = named.filter(pl.col("text") != "").unique("item", keep="first", maintain_order=True)
            return dict(first.iter_rows())
    return {}


def _clocked(time: pl.Series, clock: Clock | None, is_period: bool) -> tuple[pl.Series, str, Clock]:
    """Times as ms (null where there is none), what they were taken for, and the clock."""
    if time.dtype == pl.String:
        number = time.cast(pl.Float64, strict=False)
        if number.null_count() == len(number) > time.null_count():
            time = _dates(time)
        else:
            # Through floats only where there are fractions: 53 bits do not hold nanoseconds.
            whole = time.cast(pl.Int64, strict=False)
            time = whole if whole.null_count() == number.null_count() else number
    if time.dtype.is_temporal():
        return time.cast(pl.Datetime("ms")).cast(pl.Int64), "a date", "time"
    if not time.dtype.is_numeric():
        raise ContractError(f"time of type {time.dtype} cannot be read", "give a number or a date")
    if time.dtype.is_float():
        time = time.fill_nan(None)
    if time.null_count() == len(time):
        raise ContractError("no row has a time that can be read", "give a number or a date")
    if is_period or clock in ("order", "place", "period"):
        return _stepped(time, clock or "period")
    # The usual size counts: a single slip of a producer does not change the unit of all others.
    usual = float(time.median())  # type: ignore[arg-type]
    _, understood, factor = next(unit for unit in _UNITS if usual < unit[0])
    if understood == "order":
        return _stepped(time, "order")
    # Zero and below is how many tools write that they do not know.
    known = time.set(time <= 0, None)
    if factor >= 1:
        return (known * factor).round().cast(pl.Int64), understood, "time"
    return known.cast(pl.Int64) // round(1 / factor), understood, "time"


def _dates(text: pl.Series) -> pl.Series:
    try:
        return text.str.to_datetime(strict=False, time_zone="UTC")
    except pl.exceptions.PolarsError as error:
        example = text.drop_nulls()[0]
        raise ContractError(f"time {example!r} is no number and no date", "give ms since 1970") from error


def _stepped(time: pl.Series, clock: Clock) -> tuple[pl.Series, str, Clock]:
    """Orders and periods as times: each number is a step."""
    step = PERIOD_STEP_MS if clock == "period" else ORDER_STEP_MS
    number = (time - time.min()).cast(pl.Int64)
    understood = {"order": "a running order of all events", "place": "the order within each user", "period": "periods"}
    return number * step + ORDER_BEGINS_MS, understood[clock], clock


def _period_moments(table: pl.DataFrame, name: str) -> Ints:
    """The moments, ms, at which the periods of column `period` begin. Raises ContractError when they overlap."""
    period = table["period"].cast(pl.Int64, strict=False)
    if period.null_count():
        raise ContractError(f"{period.null_count()} rows of {name} have no period", "give a whole number in each row")
    spanned = (
        pl.DataFrame({"period": period, "time": table["event_time"]})
        .group_by("period")
        .agg(pl.col("time").min().alias("begins"), pl.col("time").max().alias("ends"))
        .sort("period")
    )
    overlap = spanned.filter(pl.col("begins") <= pl.col("ends").shift(1))
    if len(overlap):
        raise ContractError(
            f"period {overlap['period'][0]} of {name} begins before the one before it ends",
            "let periods follow each other in time, or leave the column out",
        )
    return spanned["begins"].to_numpy()


def _action_codes(action: pl.Series, name: str) -> pl.Series:
    """Codes uint8 of names or codes; nothing means the default. Raises ContractError naming what is unknown."""
    text = action.cast(pl.String).fill_null(DEFAULT_ACTION).str.strip_chars().str.to_uppercase()
    codes = {word: code for code, spoken in enumerate(ACTIONS) for word in (spoken, str(code), f"{code}.0")}
    codes[""] = codes[DEFAULT_ACTION]
    if unknown := sorted(set(text.unique()) - set(codes)):
        raise ContractError(
            f"{name} has unknown actions: {', '.join(unknown[:10])}", f"known ones are {', '.join(ACTIONS)} or codes"
        )
    return text.replace_strict(codes, return_dtype=pl.UInt8).alias("action")
