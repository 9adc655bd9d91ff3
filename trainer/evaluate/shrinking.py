"""What the ways to shrink a model do on data files: fit one model, shrink it each way, and measure.

The events are cut once in global time, as for `evaluate --protocol successive`: what comes after is foreseen by the
graphs themselves, which mask what is in the history that they read.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config import heads_of, recipe
from trainer.evaluate.protocols import Step, successive
from trainer.evaluate.report import cpu_model
from trainer.export import export
from trainer.processes import Processes
from trainer.progress import say
from trainer.recipe import NetworkConfig, Recipe
from trainer.shrink import Full, narrowed, receipt_of_shrunk, write_shrunk
from trainer.start import first_network
from trainer.tune import Course, tune

OUT = Path(".freshrec/shrink")
# Graphs are timed on one thread, as a job with many workers runs them.
THREADS = 1
SEED = 1


@dataclass(frozen=True)
class Trial:
    """What can be asked for; see the help of `python -m trainer shrink`."""

    source: Path
    format: str = "events"
    history: int = 50
    limit_users: int | None = None
    cut: float = 0.9
    width: int = 64
    blocks: int = 2
    passes: int = 4
    out: Path | None = None


def shrink_on(trial: Trial, each: Mapping[str, Sequence[str]]) -> tuple[dict[str, dict[str, float]], str]:
    """Receipts by the name of the ways, and a title. Raises ConfigError, ContractError and what a fit raises."""
    from trainer.evaluate.datasets import read

    events = read(trial.source, trial.format, limit_users=trial.limit_users)
    config = NetworkConfig(
        events.vocabulary.size, trial.width, trial.blocks, heads_of(trial.width), history=trial.history
    )  # fmt: skip
    [step] = successive(events.histories(trial.history, repeats=False), trial.cut)
    on_gpu = torch.cuda.is_available()
    full = fitted(config, step, recipe(trial.passes, True, on_gpu, trial.history))
    out = trial.out or OUT / events.name
    receipts = shrink_each(full, events.vocabulary.ids, each, out)
    about = {**asdict(trial), "source": trial.source.name, "out": out.name, "events": len(step.histories)}
    write_receipts(out, receipts, about)
    return receipts, f"{events.name}, {len(full.places):,} events foreseen"


def fitted(config: NetworkConfig, step: Step, how: Recipe, text: Tensor | None = None) -> Full:
    """A model fitted to one step of a protocol; text: see Network.set_text. Needs no table library."""
    network = first_network(config, step.known, SEED)
    if text is not None:
        network.set_text(text)
    check = step.check
    since = None if check is None else check.begins_ms
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    live = torch.ones(config.items + 1, dtype=torch.bool)
    fit = tune(network, Course(step.known, check, None, since), how, live, SEED, Processes(0, 1, device))
    return Full(
        network=network,
        learned=step.known if check is None else check.histories,
        newest_from=since,
        live=live,
        steps=fit["tune_steps"],
        seconds=fit["tune_seconds"],
        events=step.histories,
        places=step.places,
    )


def shrink_each(
    full: Full, item_ids: Sequence[str], each: Mapping[str, Sequence[str]], out: Path
) -> dict[str, dict[str, float]]:
    """Export the full model into out/full and shrunk ones into out/NAME; the receipt of each."""
    wide = _fresh(out / "full")
    export(full.network, item_ids, full.learned, wide, THREADS)
    receipts = {}
    for name, ways in each.items():
        say(f"shrinking by {name}")
        folder = _fresh(out / name)
        narrow = narrowed(full, ways, SEED)
        write_shrunk(full, narrow, ways, wide, folder, THREADS)
        receipts[name] = receipt_of_shrunk(full, narrow, wide, folder, THREADS)
    return receipts


def write_receipts(out: Path, receipts: Mapping[str, Mapping[str, float]], about: Mapping[str, Any]) -> None:
    """Write receipt.json: what was asked for, on which machine and when, and every receipt."""
    content = {
        "about": {**about, "threads": THREADS, "seed": SEED},
        "machine": f"{cpu_model()}, {platform.python_implementation()} {platform.python_version()}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "receipts": receipts,
    }
    (out / "receipt.json").write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    say(f"wrote {out / 'receipt.json'}")


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
