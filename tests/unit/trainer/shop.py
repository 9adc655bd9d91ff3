"""A small shop whose customers follow rules, so that tests know what a model must find out."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.click import ACTIONS
from schemas.hashes import hash_ids

PURCHASE = ACTIONS.index("PURCHASE")
START_MS = 1_700_000_000_000


def clicks_of(rows: list[tuple[str, str, int]], action: int = PURCHASE) -> pl.DataFrame:
    """Clicks as collect stores them, of (user, item, time in ms)."""
    users, items, times = ([row[i] for row in rows] for i in range(3))
    event_ids = [f"e{number}" for number in range(len(rows))]
    return pl.DataFrame(
        {
            "event_id": event_ids,
            "user_id": users,
            "item_id": items,
            "event_time": pl.Series(times, dtype=pl.Int64),
            "action": pl.Series([action] * len(rows), dtype=pl.UInt8),
            "item_hash": hash_ids([str(item) for item in items]),
            "event_hash": hash_ids(event_ids),
        }
    )


def chain_clicks(items: int, users: int, events: int, seed: int) -> pl.DataFrame:
    """Customers who go round the items in one fixed order, each from another start.

    After item n comes item n + 1 (nine times of ten): every item is equally popular, so popularity
    knows nothing and the history everything.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        walk: NDArray[np.int64] = rng.integers(items) + np.cumsum(rng.random(events) < 0.9)
        stray = rng.random(events) < 0.1
        visited = np.where(stray, rng.integers(0, items, events), walk % items)
        begin = START_MS + int(rng.integers(0, 10_000_000))
        rows += [(f"u{user}", f"i{i:03d}", begin + 60_000 * n) for n, i in enumerate(visited)]
    return clicks_of(rows)
