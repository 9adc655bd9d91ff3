"""A real shop's catalogue and purchases, cut in time into history and live traffic.

    python -m deploy.demo.data          # prints what the two files hold

The data set is UCI Online Retail (see README.md beside this file for attribution and licence).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from schemas.click import Click
from schemas.item import Item

# The last 19 days are replayed as live traffic: enough weekdays and a Christmas rush to move lists.
LIVE_FROM = datetime(2011, 11, 21, tzinfo=UTC)

_FOLDER = Path(__file__).parent


def purchases() -> pl.DataFrame:
    """All purchases in time order.

    Columns: event_id, user_id, item_id (strings), event_time (int64, ms), quantity (int32),
    price (float64, pounds per piece). An event is one item of one invoice, so event_id is
    "invoice-item": unique, and the same each time.
    """
    rows = pl.read_parquet(_FOLDER / "purchases.parquet")
    return rows.select(
        pl.concat_str("invoice", "item_id", separator="-").alias("event_id"),
        "user_id",
        "item_id",
        "event_time",
        "quantity",
        "price",
    )


def history(cut: datetime = LIVE_FROM) -> pl.DataFrame:
    """The purchases before the cut, in time order."""
    return purchases().filter(pl.col("event_time") < _milliseconds(cut))


def live(cut: datetime = LIVE_FROM) -> pl.DataFrame:
    """The purchases from the cut on, in time order."""
    return purchases().filter(pl.col("event_time") >= _milliseconds(cut))


def clicks(frame: pl.DataFrame) -> Iterator[Click]:
    """The rows of `purchases` (or a part of it) as click events; value = pounds spent."""
    for row in frame.iter_rows(named=True):
        yield Click(
            event_id=row["event_id"],
            user_id=row["user_id"],
            item_id=row["item_id"],
            event_time=row["event_time"],
            action="PURCHASE",
            value=round(row["quantity"] * row["price"], 2),
        )


def items() -> list[Item]:
    """The catalogue; the source names no categories, so none are invented."""
    rows = pl.read_parquet(_FOLDER / "items.parquet")
    return [Item(item_id=row["item_id"], title=row["title"], price=row["price"]) for row in rows.iter_rows(named=True)]


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def main() -> None:
    """Print how many events, users and items both sides of the cut hold."""
    print(f"catalogue: {len(items())} items")
    for name, frame in (("history", history()), ("live", live())):
        first, last = (
            datetime.fromtimestamp(ms / 1000, UTC).date() for ms in (frame["event_time"][0], frame["event_time"][-1])
        )
        users, distinct = frame["user_id"].n_unique(), frame["item_id"].n_unique()
        size = f"{frame.height} purchases, {users} users, {distinct} items"
        print(f"{name}: {size}, {first} to {last}")


if __name__ == "__main__":
    main()
