"""(f) again, where cores are to be had: one TaskManager, two, four, eight, each the whole job on one GPU.

    python -m tests.bench.gpu.widths FOLDER --items N [--widths 1,2,4,8] [--events 300000]

FOLDER: as for `tests.bench.gpu.whole_job`, which does the work, in a process of its own for each width.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.report import RESULTS, Run, show

# Of what the whole job says, what is kept for each width.
KEPT = ("taskmanagers", "provider_of_every_taskmanager", "backlog", "checked")
COLUMNS = ("TaskManagers", "events/s", "rows/s", "beside the first", "its cores", "Cassandra's", "GPU %", "held")


def measure(asked: argparse.Namespace) -> None:
    """Run, print and write down everything. A width that fails ends it."""
    run = Run("scale-gpu", quick=False)
    found: dict[str, dict[str, Any]] = {}
    for width in map(int, asked.widths.split(",")):
        with tempfile.TemporaryDirectory(prefix="freshrec-bench-") as folder:
            order = ["--items", asked.items, "--taskmanagers", width, "--events", width * asked.events, "--rates", ""]
            command = [sys.executable, "-m", "tests.bench.gpu.whole_job", "run", asked.folder, *order, "--out", folder]
            subprocess.run(list(map(str, command)), check=True)
            whole = json.loads((Path(folder) / f"whole-job-{asked.items}.json").read_text())
        found[str(width)] = {name: whole[name] for name in KEPT}
        run.write({"gpu": whole["gpu"], "items": asked.items, "by_taskmanagers": found}, asked.out)
    one, *_ = found.values()
    show(
        f"backlog by TaskManagers, {asked.items:,} items, {whole['gpu']}",
        COLUMNS,
        [
            (
                width,
                median(each, "events_per_second"),
                median(each, "rows_per_second"),
                median(each, "events_per_second") / median(one, "events_per_second"),
                last["cores"]["taskmanager"],
                last["cores"]["cassandra"],
                last["gpu_percent"],
                each["checked"]["held"],
            )
            for width, each in found.items()
            if (last := each["backlog"]["rounds"][-1])
        ],
    )


def median(found: dict[str, Any], name: str) -> float:
    value: float = found["backlog"][name]["median"]
    return value


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the releases")
    parser.add_argument("--items", type=int, default=100_000, help="size of the catalogue")
    parser.add_argument("--widths", default="1,2,4,8", help="TaskManagers, one after the other")
    parser.add_argument("--events", type=int, default=300_000, help="of a round, for each TaskManager")
    parser.add_argument("--out", type=Path, default=RESULTS)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
