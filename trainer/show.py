"""The releases as tables: what each knows, how it was judged, which one is announced; receipts; what was refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from schemas.errors import ModelRefused
from schemas.release import Manifest, ModelRelease
from schemas.roll_back import RollBack, standing
from trainer.config import TOP, Plan
from trainer.publish import Release, release_folders, verify
from trainer.verdicts import Verdict, verdicts

RECEIPT_BATCHES = (1, 64, 1024)
NOTHING = "–"


def overview(
    plan: Plan, messages: Sequence[ModelRelease] | None, rolled_back: Mapping[str, RollBack] = MappingProxyType({})
) -> Group:
    """All tables that have rows. messages: all announcements, None when unknown. rolled_back: by manifest's digest."""
    releases = {folder: _verified(folder) for folder in release_folders(plan.releases)}
    said = verdicts(plan.data)
    shrunk = [r.manifest for r in releases.values() if isinstance(r, Release) and r.manifest.receipt]
    refused = [verdict for verdict in said if verdict.refusal]
    lost = [v for v in said if not v.refusal and plan.releases / v.version not in releases]
    tables: list[RenderableType] = [releases_table(releases, messages, rolled_back)]
    if shrunk:
        tables.append(receipts_table(shrunk))
    if refused or lost:
        tables.append(refusals_table(sorted([*refused, *lost], key=lambda verdict: verdict.at)))
    return Group(*tables)


def releases_table(
    releases: Mapping[Path, Release | ModelRefused],
    messages: Sequence[ModelRelease] | None,
    rolled_back: Mapping[str, RollBack],
) -> Table:
    """One row per release folder, oldest first."""
    table = Table(box=SIMPLE, title="releases", title_justify="left")
    for title in ("release", "parent", "events", "until (UTC)", "items", "model", "popularity", "p99", "MiB"):
        table.add_column(title, no_wrap=True)
    table.add_column("announced")
    table.caption = (
        f"model and popularity: NDCG@{TOP} / HR@{TOP} on events held back; p99: ms for a batch of 64 users when judged"
    )
    last = {message.version: message for message in messages or ()}
    now = standing(messages or (), rolled_back)
    for folder, release in releases.items():
        state = "?" if messages is None else "never"
        if message := last.get(folder.name):
            state = message.stage if message.stage != "canary" else f"canary {message.percent} %"
            state = f"[bold]{state}, now[/]" if message in now else f"{state}, before"
            if bad := rolled_back.get(message.manifest_sha256):
                state = f"rolled back by the job: {bad.reason}"
        if isinstance(release, ModelRefused):
            table.add_row(folder.name, *[""] * 8, f"damaged: {release.cause}")
            continue
        manifest = release.manifest
        metrics, events = manifest.metrics, manifest.trained_on.get("events")
        table.add_row(
            manifest.version,
            manifest.parent or NOTHING,
            NOTHING if events is None else f"{events:,}",
            _minute(release.until_ms) if release.until_ms else NOTHING,
            f"{manifest.item_count:,}",
            f"{_number(metrics, 'ndcg', '.4f')} / {_number(metrics, 'hr', '.4f')}",
            f"{_number(metrics, 'popularity_ndcg', '.4f')} / {_number(metrics, 'popularity_hr', '.4f')}",
            _number(metrics, "latency_p99_ms", ".1f"),
            f"{sum(file.size for file in manifest.files.values()) / 2**20:.1f}",
            state,
        )
    return table


def receipts_table(manifests: Sequence[Manifest]) -> Table:
    """One row per release that was shrunk: what that cost and saved."""
    table = Table(box=SIMPLE, title="receipts", title_justify="left")
    for title in ("release", "parameters", "MiB", "NDCG", f"top-{TOP} kept", "cycle"):
        table.add_column(title, no_wrap=True)
    for batch in RECEIPT_BATCHES:
        table.add_column(f"ms × {batch}", no_wrap=True)
    table.caption = (
        "before → after and how many times less; NDCG: change on held-back events; cycle: T·t / T'·t' of whole cycles; "
        "ms × B: half of all batches of B users take less"
    )
    for manifest in manifests:
        receipt = manifest.receipt
        table.add_row(
            manifest.version,
            _change(receipt, "parameters", 1e-6, "M"),
            _change(receipt, "bytes", 2**-20, ""),
            _number(receipt, "ndcg_change", "+.2%"),
            _number(receipt, "top10_overlap", ".1%"),
            _number(receipt, "optimisation_ratio", ".2f"),
            *(
                " → ".join(_number(receipt, f"p50_ms_{batch}_{when}", ".1f") for when in ("before", "after"))
                for batch in RECEIPT_BATCHES
            ),
        )
    return table


def refusals_table(said: Sequence[Verdict]) -> Table:
    """One row per candidate that was judged and is not there."""
    table = Table(box=SIMPLE, title="candidates that were not published", title_justify="left")
    for title in ("judged (UTC)", "candidate", "beside", "NDCG", "popularity", "served"):
        table.add_column(title, no_wrap=True)
    table.add_column("reason")
    for verdict in said:
        table.add_row(
            _minute(verdict.at),
            verdict.version,
            verdict.parent or NOTHING,
            *(_number(verdict.metrics, name, ".4f") for name in ("ndcg", "popularity_ndcg", "served_ndcg")),
            verdict.refusal or "accepted, but the cycle ended before it was published",
        )
    return table


def _verified(folder: Path) -> Release | ModelRefused:
    try:
        return verify(folder)
    except ModelRefused as reason:
        return reason


def _minute(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M}"


def _number(numbers: Mapping[str, float], name: str, form: str) -> str:
    return format(numbers[name], form) if name in numbers else NOTHING


def _change(receipt: Mapping[str, float], name: str, unit: float, suffix: str) -> str:
    before, after = receipt.get(f"{name}_before"), receipt.get(f"{name}_after")
    if not before or not after:
        return NOTHING
    return f"{before * unit:.2f}{suffix} → {after * unit:.2f}{suffix} ({before / after:.1f}×)"
