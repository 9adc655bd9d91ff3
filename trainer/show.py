"""The releases as a table: what each one knows, how it was judged, which one is announced."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from schemas.errors import ModelRefused
from schemas.release import ModelRelease
from trainer.judge import TOP
from trainer.publish import release_folders, verify


def releases_table(releases: Path, messages: Sequence[ModelRelease] | None) -> Table:
    """One row per release folder, oldest first. messages: all announcements, None when unknown."""
    table = Table(box=SIMPLE)
    for title in ("release", "parent", "events", "until (UTC)", "items", "model", "popularity"):
        table.add_column(title, no_wrap=True)
    table.add_column("announced")
    table.caption = f"model and popularity: NDCG@{TOP} / HR@{TOP} on events held back"
    last = {message.version: message for message in messages or ()}
    newest = messages[-1].version if messages else None
    for folder in release_folders(releases):
        state = "?" if messages is None else "never"
        if folder.name in last:
            message = last[folder.name]
            state = message.stage if message.stage != "canary" else f"canary {message.percent} %"
            state = f"[bold]{state}, now[/]" if folder.name == newest else f"{state}, before"
        try:
            manifest = verify(folder).manifest
        except ModelRefused as reason:
            table.add_row(folder.name, *[""] * 6, f"damaged: {reason.cause}")
            continue
        metrics, origin = manifest.metrics, manifest.trained_on
        until = datetime.fromtimestamp(origin["until_ms"] / 1000, UTC)
        table.add_row(
            manifest.version,
            manifest.parent or "–",
            f"{origin['events']:,}",
            f"{until:%Y-%m-%d %H:%M}",
            f"{manifest.item_count:,}",
            f"{metrics['ndcg']:.4f} / {metrics['hr']:.4f}",
            f"{metrics['popularity_ndcg']:.4f} / {metrics['popularity_hr']:.4f}",
            state,
        )
    return table
