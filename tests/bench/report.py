"""What a figure needs beside it to be believed: machine, versions, load, command; as JSON and as tables."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from deploy.local.config import REPOSITORY
from tests.bench.figures import Spread

RESULTS = REPOSITORY / "tests" / "bench" / "results"
PACKAGES = ("apache-flink", "cassandra-driver", "confluent-kafka", "fastavro", "numpy", "onnxruntime-gpu")
# Servers come as jars; the pom of each names its version.
SERVERS = {"kafka": "kafka_2.13", "cassandra": "cassandra-all", "flink": "flink-sql-connector-kafka"}

# A file has no width: without one every table would be cut to 80 columns.
console = Console() if Console().is_terminal else Console(width=180)


class Run:
    """One run of one benchmark: opened before the work, so that the load it notes is not its own."""

    def __init__(self, name: str, quick: bool) -> None:
        self.name = name
        self.quick = quick
        self._began = time.monotonic()
        self._head = {
            "benchmark": name,
            "quick": quick,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python", *sys.orig_argv[1:]]),
            "machine": machine(),
            "versions": versions(),
            "load_before": [round(load, 2) for load in os.getloadavg()],
        }

    def say(self, line: str) -> None:
        """One line of progress, with the time since the run began."""
        console.print(f"[dim]{time.monotonic() - self._began:6.1f} s[/dim]  {line}", highlight=False)

    def write(self, figures: Mapping[str, Any], folder: Path = RESULTS) -> Path:
        """Write `NAME.json`, or `NAME-quick.json`: a quick run does not replace a full one."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}{'-quick' if self.quick else ''}.json"
        whole = {**self._head, "seconds": round(time.monotonic() - self._began, 1), **figures}
        file.write_text(json.dumps(_rounded(whole), indent=1) + "\n")
        console.print(f"written to {file}", highlight=False)
        return file


def machine() -> dict[str, Any]:
    """CPU model, cores this process may use, memory in GiB, system."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.*)", info.read_text())):
        cpu = found[1].strip()
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that do the work, and of the servers."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    for server, artifact in SERVERS.items():
        pom = (REPOSITORY / "deploy" / "local" / server / "pom.xml").read_text()
        match = re.search(rf"<artifactId>{re.escape(artifact)}</artifactId>\s*<version>([^<]+)<", pom)
        found[f"{server}: {artifact}"] = match[1] if match else "not named"
    return found


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on a terminal and in a file alike; the first column are names, the others figures."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(shown(cell) for cell in row))
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    console.print(table)


def shown(cell: object) -> str:
    """A cell: a spread as `median (low–high)`, numbers with three figures and their thousands apart."""
    if isinstance(cell, Spread):
        return shown(cell.median) if cell.count < 2 else f"{_number(cell.median)} ({_range(cell)})"
    return _number(cell) if isinstance(cell, float) else str(cell)


def _range(cell: Spread) -> str:
    return f"{_number(cell.low)}–{_number(cell.high)}"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _rounded(value: Any) -> Any:
    """Four significant figures: more would claim what no measurement here holds."""
    if isinstance(value, Spread):
        return _rounded(value.as_json())
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < 10_000 else round(value)
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
