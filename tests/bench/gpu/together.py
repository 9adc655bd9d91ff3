"""Several GPUs that learn one model over NCCL, beside one GPU: the same quality, in what part of the time.

    python -m tests.bench.gpu.together SOURCE --format NAME [--history 50] [--passes N] [--out FILE]

SOURCE and NAME are a data set as `python -m trainer evaluate` takes it. The events before the last tenth (in time) are
learned, as a first fit of `python -m trainer cycle` under torchrun learns them, by one process and by one a GPU; each
network then foresees the last tenth. A table last, and the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainer.config import heads_of, recipe
from trainer.evaluate.datasets import LOADERS, read
from trainer.evaluate.protocols import successive
from trainer.fit import Check, checked
from trainer.processes import processes
from trainer.recipe import NetworkConfig
from trainer.sequences import evenly
from trainer.start import first_network
from trainer.tune import Course, tune

WIDTH, BLOCKS, SEED = 128, 2, 1
FORESEEN = 20_000
PATIENCE_S = 400
# Gloo carries decisions; it must not look for another network than this host's.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}


def learn(asked: argparse.Namespace) -> None:
    """What each process does; the leader writes to asked.one."""
    events = read(asked.source, asked.format)
    histories = events.histories(asked.history, repeats=False)
    config = NetworkConfig(events.vocabulary.size, WIDTH, BLOCKS, heads_of(WIDTH), history=asked.history)
    [step] = successive(histories, 0.9)
    assert step.check is not None
    live = torch.ones(config.items + 1, dtype=torch.bool)
    with processes(threads=os.cpu_count() or 1) as together:
        network = first_network(config, step.known, SEED)
        course = Course(step.known, step.check, None, step.check.begins_ms)
        fit = tune(network, course, recipe(asked.passes, True, True, histories.history), live, SEED, together)
        if together.leads:
            result = checked(network, Check(step.histories, evenly(step.places, FORESEEN)))
            asked.one.write_text(json.dumps({**fit, "processes": together.count, **vars(result)}))


def launched(count: int, out: Path) -> dict[str, Any]:
    """The same by `count` processes that torchrun starts with this process's own arguments."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", __spec__.name, *sys.argv[1:], "--one", str(out)]
    began = time.monotonic()
    subprocess.run(command, env={**os.environ, **LOOPBACK}, check=True, timeout=PATIENCE_S)
    return {**json.loads(out.read_text()), "whole_seconds": time.monotonic() - began}


def main() -> None:
    """One process of several, or all of them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--format", required=True, choices=sorted(LOADERS))
    parser.add_argument("--history", type=int, default=50)
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("together.json"))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        learn(asked)
        return
    gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    if len(gpus) < 2:
        raise SystemExit(f"error: {len(gpus)} GPU is not several; run it where there are two or more")
    with tempfile.TemporaryDirectory() as folder:
        found = [launched(count, Path(folder) / f"{count}.json") for count in (1, len(gpus))]
    content = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "gpus": gpus, "torch": torch.__version__, "data": asked.format,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
        "passes": asked.passes, "fits": found,
    }  # fmt: skip
    asked.out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{'GPUs':>4} {'steps':>6} {'s':>7} {'steps/s':>8} {'loss':>7} {'NDCG@10':>8} {'HR@10':>7}")
    for fit in found:
        print(f"{fit['processes']:>4} {fit['tune_steps']:>6.0f} {fit['tune_seconds']:>7.1f} "
              f"{fit['tune_steps'] / fit['tune_seconds']:>8.1f} {fit['loss']:>7.4f} {fit['ndcg']:>8.4f} "
              f"{fit['hit']:>7.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
