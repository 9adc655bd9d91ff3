"""The README's `evaluate` lines, as printed there, on a GPU host: all at once, since each leaves the GPU gaps.

    python -m tests.bench.gpu.evaluate DATA [--out FOLDER]

DATA is the folder that the lines call so. Results go to FOLDER as evaluate-NAME-PROTOCOL.json, plots and what each line
said to FOLDER/0 and so on. A table last: every arm's mean, and how much less time later fits took than full retrains.
CUDA MPS (`nvidia-cuda-mps-control -d`) lets the processes share the GPU better.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

BEGINNING = "python -m trainer evaluate DATA/"
# Threads of a process: its batches are small, and all run at once.
THREADS = "2"
RETRAIN = "full-retrain"


def lines_of(readme: str) -> list[str]:
    """The lines, each whole."""
    return [line for line in readme.replace("\\\n", " ").splitlines() if line.startswith(BEGINNING)]


def started(line: str, data: Path, out: Path) -> subprocess.Popen[bytes]:
    """A line at work; it writes out/result.json and out/log."""
    words = shlex.split(line.replace("DATA/", f"{data}/"))[1:]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, *words, "--out", str(out)], stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": THREADS},
        )  # fmt: skip


def rows(result: dict[str, Any]) -> list[str]:
    """One line an arm."""
    arms = result["arms"]
    seconds = {arm: later_seconds(found) for arm, found in arms.items()}
    lines = []
    for arm, found in arms.items():
        mean, spread = (found[name]["all"] for name in ("mean", "standard_deviation"))
        goes_on = arm.startswith("fine-tune") and RETRAIN in arms
        less = f"  1/{seconds[RETRAIN] / seconds[arm]:.1f} of {RETRAIN}" if goes_on else ""
        lines.append(
            f"  {arm:18}{mean['ndcg@10']:.4f} ± {spread['ndcg@10']:.4f}  {mean['hr@10']:.4f} ± {spread['hr@10']:.4f}"
            f"{found['learn_seconds']:8.0f} s{less}"
        )
    return lines


def later_seconds(found: dict[str, Any]) -> float:
    """Seconds of all fits of an arm but the first of each seed."""
    return float(sum(part["learn_seconds"] for seed in found["seeds"].values() for part in seed["periods"][1:]))


def main() -> None:
    """Run all lines; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("evaluated"))
    asked = parser.parse_args()
    lines = lines_of(Path("README.md").read_text())
    runs = [started(line, asked.data, asked.out / str(number)) for number, line in enumerate(lines)]
    failed = [line for line, run in zip(lines, runs, strict=True) if run.wait() != 0]
    for number, line in enumerate(lines):
        if line in failed:
            continue
        result = json.loads((asked.out / str(number) / "result.json").read_text())
        result["command"] = shlex.join(shlex.split(line))
        name = f"evaluate-{result['data']['name']}-{result['protocol']['name']}"
        (asked.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}  NDCG@10, HR@10, learning", *rows(result), sep="\n")
    if failed:
        raise SystemExit("error: these ended early, see their logs:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
