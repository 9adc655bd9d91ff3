"""Several scorers of one GPU, without Flink, Kafka and Cassandra: users a second, cores, time of a micro-batch.

    python -m tests.bench.gpu.scorers RELEASE [--scorers 8] [--users 370,150,60] [--out FOLDER]

RELEASE is a release's folder, as `python -m tests.bench.gpu.whole_job prepare` makes one. Each scorer is a process that
loads it as the job does (see streaming/model.py) and scores micro-batches of so many users one after another, in the
ways of WAYS in turn, all scorers at once. A table last, and the same as JSON. With CUDA MPS on or off, as it is found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

import streaming.model as served
from schemas.release import WARMUP
from streaming.fetch import fetch
from streaming.model import CUDA, GPU_SIZES, LARGEST, Model, load
from streaming.sturdy import CPU
from tests.bench.report import Run, show
from tests.bench.world import announcement
from trainer.publish import verify

# What the job does, and what it would be without one thing or both: (largest batch, whether who waits sleeps).
WAYS = {
    "as the job": (GPU_SIZES[-1], True),
    "waiting awake": (GPU_SIZES[-1], False),
    "small batches": (LARGEST, True),
    "both": (LARGEST, False),
}
SECONDS, WARM_UP = 3.0, 5
PATIENCE_S = 120.0


def loaded(release: Path, way: str) -> Model:
    """The model as that way has it."""
    largest, asleep = WAYS[way]
    served.GPU_SIZES = tuple(size for size in GPU_SIZES if size <= largest)
    if not asleep:
        served._sleep_while_the_gpu_works = lambda: None
    return load(announcement(verify(release)), [CUDA, CPU], threads=1)


def score(release: Path, way: str, sizes: list[int]) -> None:
    """One scorer: it says when it is ready, waits for a line, and answers with one line of JSON."""
    model = loaded(release, way)
    _, files = fetch(model.release)
    with np.load(BytesIO(files[WARMUP])) as archive:
        arrays = {name: archive[name] for name in model.manifest.inputs if name != "available"}
    available = np.ones(model.vocabulary.size + 1, np.bool_)

    def micro_batch(users: int) -> None:
        rows, step = np.arange(users) % len(arrays["item_index"]), model.sizes[-1]
        for at in range(0, users, step):
            inputs: Any = {name: values[rows[at : at + step]] for name, values in arrays.items()}
            model.run(inputs, available)

    for users in sizes * WARM_UP:
        micro_batch(users)
    print("ready", flush=True)
    sys.stdin.readline()
    found = {}
    for users in sizes:
        took, spent, began = [], time.process_time(), time.perf_counter()
        while (now := time.perf_counter()) < began + SECONDS:
            micro_batch(users)
            took.append(time.perf_counter() - now)
        seconds = time.perf_counter() - began
        p50, p99 = np.percentile(took, [50, 99]) * 1000
        cores = (time.process_time() - spent) / seconds
        found[users] = {"users_s": len(took) * users / seconds, "cores": cores, "p50_ms": p50, "p99_ms": p99}
    print(json.dumps({"provider": model.session.get_providers()[0], "found": found}), flush=True)


def together(release: Path, way: str, count: int, sizes: list[int]) -> list[dict[str, Any]]:
    """What so many scorers found at once; each must serve where it was asked to."""
    command = [sys.executable, "-m", __spec__.name, str(release), "--users", ",".join(map(str, sizes)), "--way", way]
    scorers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(count)
    ]  # fmt: skip
    try:
        for scorer in scorers:
            if scorer.stdout is None or scorer.stdout.readline() != "ready\n":
                raise RuntimeError("a scorer did not become ready: see what it said above")
        for scorer in scorers:
            assert scorer.stdin is not None
            scorer.stdin.write("go\n")
            scorer.stdin.flush()
        return [json.loads(scorer.communicate(timeout=PATIENCE_S)[0]) for scorer in scorers]
    finally:
        for scorer in scorers:
            scorer.kill()
            scorer.wait()


def main() -> None:
    """One scorer, or all ways one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path)
    parser.add_argument("--scorers", type=int, default=8)
    parser.add_argument("--users", default="370,150,60")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sizes = [int(size) for size in asked.users.split(",")]
    if asked.way is not None:
        score(asked.release, asked.way, sizes)
        return
    run = Run("scorers", False)
    rows, figures = [], {}
    for way in WAYS:
        scorers = together(asked.release, way, asked.scorers, sizes)
        providers = sorted({scorer["provider"] for scorer in scorers})
        figures[way] = {"providers": providers, "scorers": [scorer["found"] for scorer in scorers]}
        for users in map(str, sizes):
            each = [scorer["found"][users] for scorer in scorers]
            whole = [sum(one[name] for one in each) for name in ("users_s", "cores")]
            worst = [max(one[name] for one in each) for name in ("p50_ms", "p99_ms")]
            rows.append((way, users, *whole, *worst, ", ".join(providers)))
    show(
        f"{asked.scorers} scorers at once, release {asked.release.name}",
        ["", "users a micro-batch", "users/s, all", "cores, all", "p50 ms, slowest", "p99 ms, slowest", "on"],
        rows,
    )
    run.write({"release": asked.release.name, "scorers": asked.scorers, "ways": figures}, asked.out)


if __name__ == "__main__":
    main()
