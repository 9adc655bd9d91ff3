"""Which items the model of a cycle knows: served ones that are still alive, and new ones.

An item is dead when
    the catalogue took it out (null, or not available) and nobody clicked it for `gone_days`, or
    the catalogue never named it and nobody clicked it for `idle_days`.
Days count back from the newest click. What leaves may come back with the next click or word on it, as a new item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.features import Vocabulary
from trainer.config import DAY_MS, Plan
from trainer.sequences import index_order


@dataclass(frozen=True)
class Catalogue:
    """Items in index order.

    titles: of index 1 … V, "" without one. live: bool[V+1], what can be recommended now; index 0 never.
    """

    vocabulary: Vocabulary
    titles: list[str]
    live: NDArray[np.bool_]


def catalogue_of(served: Sequence[str], stored: pl.DataFrame, clicks: pl.DataFrame, plan: Plan) -> Catalogue:
    """Alive items: those of the served model in its order, new ones after them.

    served: item ids. stored: as collect.stored_catalogue. clicks: columns item_id and event_time (ms).
    """
    known = pl.concat([pl.Series("item_id", served, pl.String), stored["item_id"], clicks["item_id"]]).unique()
    last_click = clicks.group_by("item_id").agg(pl.col("event_time").max().alias("clicked"))
    rows = (
        known.to_frame()
        .join(last_click, "item_id", "left")
        .join(stored.select("item_id", "title", "available", "gone"), "item_id", "left")
    )
    idle = pl.lit(clicks["event_time"].max(), pl.Int64) - pl.col("clicked")
    out = pl.col("gone") | ~pl.col("available")
    # A comparison with null (no click, not in the catalogue) is null, and no item is kept for that.
    alive = (
        (pl.col("available") & ~pl.col("gone"))
        | (out & (idle < plan.gone_days * DAY_MS))
        | (out.is_null() & (idle < plan.idle_days * DAY_MS))
    )
    rows = rows.filter(alive.fill_null(False))
    ids = set(rows["item_id"])
    order = index_order([item for item in served if item in ids], ids, ())
    title = dict(rows.select("item_id", pl.col("title").fill_null("")).iter_rows())
    closed = set(rows.filter(out.fill_null(False))["item_id"])
    live = np.array([False, *(item not in closed for item in order)], np.bool_)
    return Catalogue(Vocabulary(order), [title[item] for item in order], live)
