"""The suite's results as pictures: `python -m tests.bench.plots`, from the JSON beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from tests.bench.report import RESULTS

# Told apart in print and by those who do not see red and green alike.
COLOURS = {"job": "#0072b2", "tuned consumer": "#e69f00", "PyFlink tutorial": "#999999"}
PERCENTILES = ("p50", "p95", "p99", "max")


def plot_freshness(found: dict[str, Any], file: Path) -> None:
    """Percentiles, one panel a rate, in it the systems that kept up."""
    rates = sorted({int(rate) for by_rate in found["systems"].values() for rate in by_rate})
    figure, panels = plt.subplots(1, len(rates), figsize=(3.2 * len(rates), 3.2), sharey=True, squeeze=False)
    for panel, rate in zip(panels[0], rates, strict=True):
        for name, by_rate in found["systems"].items():
            if by_rate.get(str(rate), {}).get("held"):
                ages = by_rate[str(rate)]["acknowledged_ms"]
                panel.plot(PERCENTILES, [ages[p] for p in PERCENTILES], "o-", color=COLOURS.get(name), label=name)
        if not panel.lines:
            panel.text(0.5, 0.5, "no system kept up", ha="center", transform=panel.transAxes)
            panel.set_xticks([])
        panel.set_title(f"{rate:,} events/s".replace(",", " "))
        panel.set_yscale("log")
        panel.grid(axis="y", alpha=0.3)
    panels[0][0].set_ylabel("ms, produced → acknowledged")
    handles = {label: h for panel in panels[0] for h, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    figure.savefig(file, dpi=120)
    plt.close(figure)


def plot_backlog(found: dict[str, Any], file: Path) -> None:
    """Events and rows a second, warm, with the range of the rounds."""
    figure, panels = plt.subplots(1, 2, figsize=(7.5, 2.4), sharey=True)
    names = list(found["systems"])[::-1]
    for panel, what in zip(panels, ("events", "rows"), strict=True):
        rates = [found["systems"][name][f"{what}_per_second_warm"] for name in names]
        middle = [rate["median"] for rate in rates]
        ends = [[r["median"] - r["low"] for r in rates], [r["high"] - r["median"] for r in rates]]
        panel.barh(names, middle, xerr=ends, color=[COLOURS.get(name, "#56b4e9") for name in names], capsize=3)
        panel.set_xlabel(f"{what} a second")
        # Beyond the whisker, where nothing is in the way.
        panel.margins(x=0.24)
        for place, rate in enumerate(rates):
            label = f"  {rate['median']:,.0f}".replace(",", " ")
            panel.annotate(label, (rate["high"], place), va="center", color="black", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)


PLOTS = {"freshness": plot_freshness, "backlog": plot_backlog}


def draw(folder: Path = RESULTS) -> list[Path]:
    """Draw what there are results for, of full runs before quick ones."""
    mpl.use("Agg")
    drawn = []
    for name, plot in PLOTS.items():
        sources = [file for file in (folder / f"{name}.json", folder / f"{name}-quick.json") if file.is_file()]
        if sources:
            drawn.append(folder / f"{name}.png")
            plot(json.loads(sources[0].read_text()), drawn[-1])
    return drawn


if __name__ == "__main__":
    for picture in draw():
        print(picture)
