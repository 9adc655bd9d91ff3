"""The result of an evaluation: a table for people, JSON for machines, and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from trainer.evaluate.harness import Run
from trainer.evaluate.metrics import METRICS, Figures
from trainer.files import write_whole

GROUPS = ("all", "known", "new items", "new users")
# A group is shown in the table when it holds at least this share of the events.
SHOWN_SHARE = 0.005


@dataclass(frozen=True)
class Report:
    """Everything that one evaluation found, and what it was made from.

    data: what was read. protocol: its name and options. runs: one per arm and seed.
    """

    data: dict[str, Any]
    protocol: dict[str, Any]
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    command: str

    @property
    def arms(self) -> list[str]:
        """Names in the order of the table."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str) -> list[Run]:
        """The runs of an arm, one a seed."""
        return [run for run in self.runs if run.arm == arm]

    def json(self) -> dict[str, Any]:
        """All of it, for machines; figures of a group without events are left out."""
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.command,
            "machine": machine(),
            "data": self.data,
            "protocol": self.protocol,
            "seeds": list(self.seeds),
            "arms": {arm: self._arm(self.of(arm)) for arm in self.arms},
        }

    def _arm(self, runs: Sequence[Run]) -> dict[str, Any]:
        groups = [group for group in GROUPS if group in runs[0].groups]
        return {
            "variant": runs[0].variant,
            "mean": {group: mean([run.groups[group] for run in runs]) for group in groups},
            "standard_deviation": {group: deviation([run.groups[group] for run in runs]) for group in groups},
            "learn_seconds": float(np.mean([run.learn_seconds for run in runs])),
            "score_seconds": float(np.mean([run.score_seconds for run in runs])),
            "seeds": {str(run.seed): _of_seed(run) for run in runs},
        }

    def table(self) -> Table:
        """One row per arm and group; the mean over seeds, ± the standard deviation where there are several."""
        table = Table(box=SIMPLE, title=f"{self.data['name']}, {self.protocol['name']}")
        table.add_column("arm", no_wrap=True)
        table.add_column("events of", no_wrap=True)
        for title in ("events", *(metric.upper().replace("COVERAGE", "coverage") for metric in METRICS)):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("learn s", justify="right", no_wrap=True)
        table.add_column("score s", justify="right", no_wrap=True)
        table.add_column("parameters")
        for arm in self.arms:
            runs = self.of(arm)
            total = runs[0].groups["all"]["events"]
            shown = [g for g in GROUPS if g == "all" or SHOWN_SHARE * total <= runs[0].groups[g]["events"] < total]
            for group in shown:
                alone = group == "all"
                values = [run.groups[group] for run in runs]
                table.add_row(
                    arm if alone else "",
                    group,
                    f"{values[0]['events']:,.0f}",
                    *(_spread([each[metric] for each in values]) for metric in METRICS),
                    f"{np.mean([run.learn_seconds for run in runs]):.1f}" if alone else "",
                    f"{np.mean([run.score_seconds for run in runs]):.1f}" if alone else "",
                    runs[0].variant if alone else "",
                    end_section=group == shown[-1],
                )
        table.caption = (
            f"ranked among all {self.data['items']:,} items; seeds {', '.join(map(str, self.seeds))}; "
            "of popularity's windows the best one on the tested events"
        )
        return table

    def write(self, folder: Path) -> list[Path]:
        """Write result.json and result.png into the folder; returns the paths."""
        from trainer.evaluate.plot import draw

        folder.mkdir(parents=True, exist_ok=True)
        text, picture = folder / "result.json", folder / "result.png"
        content = json.dumps(self.json(), indent=1, ensure_ascii=False)
        write_whole(text, lambda path: path.write_text(content + "\n"))
        draw(self, picture)
        return [text, picture]


def mean(values: Sequence[Figures]) -> Figures:
    """Mean of each figure over seeds."""
    return {name: float(np.mean([each[name] for each in values])) for name in values[0]}


def deviation(values: Sequence[Figures]) -> Figures:
    """Standard deviation of each figure over seeds, as of a sample; 0 for a single one."""
    if len(values) == 1:
        return dict.fromkeys(values[0], 0.0)
    return {name: float(np.std([each[name] for each in values], ddof=1)) for name in values[0]}


def machine() -> dict[str, Any]:
    """What the figures of time depend on."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def cpu_model() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _of_seed(run: Run) -> dict[str, Any]:
    return {
        "variant": run.variant,
        "groups": run.groups,
        "learn_seconds": run.learn_seconds,
        "score_seconds": run.score_seconds,
        "periods": [
            {
                "begins_ms": part.begins_ms,
                "learn_seconds": part.learn_seconds,
                "score_seconds": part.score_seconds,
                **part.figures,
            }
            for part in run.parts
        ],
    }


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
