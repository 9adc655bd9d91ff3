"""What the demo shows: a user's lists before and after, and the closing table."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol

from rich.table import Table

from deploy.demo.recount import Recount
from streaming.metrics import bucket_names, percentile


@dataclass
class Watched:
    """A user whose lists are shown, by title. recent, bought: newest first."""

    user_id: str
    recent: list[str]
    before: list[str]
    before_model: str
    bought: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    after_model: str = ""


class SwapView(Protocol):
    """What the closing table needs of the swap; gaps in ms between two acknowledgements."""

    replayed: int
    longest_gap_ms: int
    usual_gap_ms: int


def lists_table(user: Watched) -> Table:
    """Recent purchases and list, then the new purchases and the new list."""
    table = Table(
        "bought before",
        f"list then (model {user.before_model})",
        "bought in the replay",
        f"list now (model {user.after_model})",
        title=f"customer {user.user_id}",
        title_justify="left",
    )
    for row in zip_longest(user.recent, user.before, user.bought, user.after, fillvalue=""):
        table.add_row(*row)
    return table


def closing_table(
    flink_url: str,
    total: Counter[str],
    live: Counter[str],
    swap: SwapView,
    checked: Recount,
    seconds: float,
) -> Table:
    """total: the job's counters at the end. live: what they grew by during the replay."""
    buckets = [live[name] for name in bucket_names()]
    p50, p95, p99 = (percentile(buckets, share) for share in (0.5, 0.95, 0.99))
    table = Table("", "", title="the whole loop", title_justify="left", show_header=False)
    table.add_row("events", f"{total['features_events']:,} ({live['features_events']:,} of them live)")
    table.add_row("duplicates, late", f"{total['features_duplicates']:,}, {total['features_late']:,}")
    table.add_row("dead letters", f"{total['features_dead_letters']:,}")
    table.add_row(
        "rows written",
        f"{total['write_rows']:,} ({total['score_by_model']:,} by a model, {total['score_by_trending']:,} trending)",
    )
    table.add_row(
        "freshness, live",
        f"p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms (event produced → row acknowledged)",
    )
    table.add_row("models that served", "\n".join(checked.versions))
    table.add_row(
        "longest gap in output",
        f"{swap.longest_gap_ms} ms around the swap, {swap.usual_gap_ms} ms before it",
    )
    table.add_row("rows checked", f"{checked.rows:,} by a model; of two models or wrong: {checked.wrong}")
    table.add_row("took", f"{seconds / 60:.1f} min")
    table.add_row("Flink's UI", flink_url)
    return table
