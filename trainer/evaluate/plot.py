"""The plot of an evaluation: quality over time, one line an arm; bars where there is no time."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.config import TOP
from trainer.files import write_whole

if TYPE_CHECKING:
    from trainer.evaluate.report import Report

METRIC = f"ndcg@{TOP}"
# Inches and dots per inch: 1500 × 840 pixels, readable on a page and on a screen.
SIZE, DOTS = (10.0, 5.6), 150
# Distance between two labels, as a share of the height of the axis.
LABEL_DISTANCE = 0.045
# Okabe and Ito's colours, which colour-blind readers tell apart; then again, dashed.
GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.7}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw(report: Report, target: Path) -> None:
    """Write the plot as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=SIZE, dpi=DOTS, layout="constrained")
        axes = figure.add_subplot()
        if all(len(run.parts) > 1 for run in report.runs):
            _lines(report, axes)
        else:
            _bars(report, axes)
        seeds = f", mean of seeds {', '.join(map(str, report.seeds))}" if len(report.seeds) > 1 else ""
        axes.set_title(f"{report.data['name']}: {report.protocol['name']}{seeds}", loc="left", fontweight="bold")
        axes.set_axisbelow(True)
        write_whole(target, lambda path: figure.savefig(path, format="png"))


def _lines(report: Report, axes: Any) -> None:
    real = report.data["clock"] == "time"
    ends = []
    for number, arm in enumerate(report.arms):
        runs = report.of(arm)
        values = np.array([[part.figures.get(METRIC, np.nan) for part in run.parts] for run in runs]).mean(axis=0)
        moments = [part.begins_ms or 0 for part in runs[0].parts]
        places = (
            [datetime.fromtimestamp(ms / 1000, UTC) for ms in moments] if real else list(range(1, 1 + len(moments)))
        )
        overall = np.mean([run.groups["all"][METRIC] for run in runs])
        colour, dashes = COLOURS[number % len(COLOURS)], "--" if number >= len(COLOURS) else "-"
        axes.plot(places, values, dashes, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=arm)
        ends.append((float(values[-1]), f"{arm}: {overall:.4f} overall", colour))
    periods = report.protocol["name"] == "prequential"
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", **GRID)
    unit = "begin of period" if periods else "time of the first event of each tenth"
    axes.set_xlabel(f"{unit} (UTC)" if real else "period" if periods else "tenth of the tested events")
    axes.set_ylabel(f"NDCG@{TOP} of the period, full ranking")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=4, frameon=False)
    lowest, highest = axes.get_ylim()
    height = -np.inf
    for value, text, colour in sorted(ends):
        height = max(value, height + LABEL_DISTANCE * (highest - lowest))
        axes.text(
            1.01, (height - lowest) / (highest - lowest), text, color=colour, va="center", transform=axes.transAxes
        )
    if real:
        axes.figure.autofmt_xdate(rotation=0, ha="center")


def _bars(report: Report, axes: Any) -> None:
    arms = report.arms[::-1]
    values = [[run.groups["all"][METRIC] for run in report.of(arm)] for arm in arms]
    means = [float(np.mean(each)) for each in values]
    spread = [float(np.std(each, ddof=1)) if len(each) > 1 else 0.0 for each in values]
    bars = axes.barh(arms, means, xerr=spread if any(spread) else None, color=COLOURS[0], height=0.6)
    axes.bar_label(bars, [f"{value:.4f}" for value in means], padding=4)
    axes.set_xlabel(f"NDCG@{TOP}, full ranking among {report.data['items']:,} items")
    axes.grid(axis="x", **GRID)
    axes.set_xlim(right=1.15 * max([*means, 1e-9]))
