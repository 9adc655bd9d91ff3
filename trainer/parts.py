"""The collected clicks on disk: Parquet parts by day of the event, merged before they become many.

    clicks/day=2011-11-21/00003-000000050000.parquet    partition 3, first message read at offset 50 000

A merge writes the rows of several small parts over the first of them, whole, and only then removes the others. A
crash in between leaves rows in two parts: each event is read once all the same, an erasure goes through every part,
and the next merge counts each partition and offset once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import ContractError
from trainer.files import sync, write_whole

CLICK_COLUMNS: dict[str, Any] = {
    "event_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "event_time": pl.Int64,  # ms
    "action": pl.UInt8,  # index into schemas.click.ACTIONS
    "item_hash": pl.UInt64,
    "event_hash": pl.UInt64,
    "produced_at": pl.Int64,  # ms, Kafka's timestamp: an erasure reaches what is older than it
    "partition": pl.Int32,
    "offset": pl.Int64,
}
PLACE = ["partition", "offset"]
# Some 15 000 clicks. Opening a file costs as much as reading so many rows; larger parts are left as they are.
SMALL_BYTES = 2**20
# So many parts are merged at once: 64 MiB at most, ten times that in memory.
MERGE_MOST = 64
# The newest days still grow: they are merged when so many small parts are there, finished days from the second on.
GROWING_DAYS, MERGE_GROWING = 2, 16


def part_name(partition: int, start: int) -> str:
    """The name of a part by its first message, the same for a pass that is repeated after a crash."""
    return f"{partition:05d}-{start:012d}.parquet"


def write_parts(folder: Path, name: str, rows: pl.DataFrame) -> None:
    """Write rows under a name into the folder of each one's day; on disk when this returns."""
    day = pl.from_epoch("event_time", time_unit="ms").dt.strftime("%Y-%m-%d")
    for (date,), part in rows.group_by(day.alias("date"), maintain_order=True):
        target = folder / f"day={date}" / name
        write_whole(target, part.select(CLICK_COLUMNS.keys()).write_parquet)
        sync(target.parent)
    if folder.exists():
        sync(folder)


def read_parts(folder: Path) -> pl.DataFrame:
    """All clicks, each event_id once (its first copy); columns CLICK_COLUMNS. Raises ContractError."""
    parts = sorted(folder.glob("day=*/*.parquet"))
    if not parts:
        return pl.DataFrame(schema=CLICK_COLUMNS)
    try:
        rows = pl.scan_parquet(parts, hive_partitioning=False).select(CLICK_COLUMNS.keys()).collect()
    except (pl.exceptions.PolarsError, OSError):
        # Which of them it was, only asking each one tells.
        rows = pl.concat(map(read_part, parts))
    return rows.sort(PLACE).unique("event_id", keep="first", maintain_order=True)


def read_part(part: Path) -> pl.DataFrame:
    """One part as it lies. Raises ContractError when it is damaged."""
    try:
        return pl.read_parquet(part, hive_partitioning=False).select(CLICK_COLUMNS.keys())
    except (pl.exceptions.PolarsError, OSError) as problem:
        data = part.parent.parent.parent
        raise ContractError(
            f"{part} is damaged ({str(problem).splitlines()[0]})",
            f"restore it, or remove {data} to collect again all that Kafka still has",
        ) from problem


def erase(folder: Path, erasures: pl.DataFrame) -> None:
    """Rewrite every part without the clicks of users from before they were erased.

    erasures: columns user_id and asked_at (ms), one row per user. Raises ContractError.
    """
    for part in sorted(folder.glob("day=*/*.parquet")):
        rows = read_part(part)
        kept = rows.join(erasures, on="user_id", how="left").filter(
            pl.col("asked_at").is_null() | (pl.col("produced_at") > pl.col("asked_at"))
        )
        if kept.height < rows.height:
            write_whole(part, kept.select(CLICK_COLUMNS.keys()).write_parquet)


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash left half written: clicks in it would escape an erasure."""
    for left in folder.glob("day=*/.*.tmp"):
        left.unlink()


def merge_parts(folder: Path) -> int:
    """Merge small parts day by day; returns how many files fewer there are. Raises ContractError.

    Only while no pass is under way: a pass repeated after a crash writes its own names again.
    """
    days, fewer = sorted(folder.glob("day=*")), 0
    for day in days:
        least = MERGE_GROWING if day in days[-GROWING_DAYS:] else 2
        parts = sorted(day.glob("*.parquet"))
        small = [part for part in parts if part.stat().st_size < SMALL_BYTES]
        large = [part for part in parts if part not in small]
        while len(small) >= least:
            chosen, small = small[:MERGE_MOST], small[MERGE_MOST:]
            merged = _merge(chosen, large)
            (small if merged.stat().st_size < SMALL_BYTES else large).insert(0, merged)
            fewer += len(chosen) - 1
    return fewer


def _merge(parts: list[Path], others: list[Path]) -> Path:
    """Write the rows of several parts over the first of them, less those that others hold, and remove the rest."""
    rows = pl.concat(map(read_part, parts)).unique(PLACE, keep="first")
    for other in others:
        rows = rows.join(read_part(other).select(PLACE), on=PLACE, how="anti")
    target = parts[0]
    write_whole(target, rows.sort(PLACE).write_parquet)
    sync(target.parent)
    for part in parts[1:]:
        part.unlink()
    return target
