"""The trainer's settings: a few dials; all else is derived from them and printed at start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from schemas.settings import CommonSettings, Section

# Cores left to the servers that share the machine with a training run.
CORES_LEFT_FREE = 1
# One pass of training windows is cut into steps of this many; the co-occurrence start does the
# coarse work, so many small steps learn more from the same seconds than few large ones.
WINDOWS_PER_STEP = 16


class TrainerSection(Section):
    """Section [trainer].

    data: folder for what was collected. releases: folder of published releases, readable by the
    job. seed: of everything random. threads: for training; 0 derives them from the cores.
    first_passes, later_passes: most passes over the events in a first fit and in later cycles.
    """

    data: Path = Path(".freshrec/trainer")
    releases: Path = Path(".freshrec/releases")
    seed: int = Field(1, ge=0)
    threads: int = Field(0, ge=0)
    first_passes: int = Field(4, ge=1)
    later_passes: int = Field(2, ge=1)


class Settings(CommonSettings):
    """The tree as the trainer reads it; other packages check their own sections."""

    trainer: TrainerSection = TrainerSection()
    streaming: dict[str, Any] = Field(default_factory=dict)


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

    def checkpoint(self, version: str) -> Path:
        """Where the parameters of a release lie, for later cycles to go on from."""
        return self.checkpoints / f"{version}.pt"

    def lines(self) -> list[str]:
        """The plan as lines to print."""
        return [
            f"data {self.data} · releases {self.releases}",
            f"checkpoints {self.checkpoints} · curves {self.curves}",
            f"{self.threads} training threads · seed {self.seed} · "
            f"at most {self.first_passes} passes first, {self.later_passes} later",
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
    )
