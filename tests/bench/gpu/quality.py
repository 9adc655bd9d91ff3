"""The evaluation's networks on a GPU host that has torch and numpy, but nothing that reads tables of events.

    python -m tests.bench.gpu.quality prepare FOLDER DATA    here: every data set of JOBS → one file each in FOLDER
    python -m tests.bench.gpu.quality run FOLDER OUT         there: all jobs, several at once; a table last
    python -m tests.bench.gpu.quality run FOLDER OUT NAME…   only these

Each job writes OUT/NAME.json after each of its arms: what `python -m trainer evaluate` writes for the same data,
protocol and arms. Over time the table says, too, how much longer a later fit of full-retrain takes than one of others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.config import PACKAGED, heads_of
from trainer.evaluate.arms import Arm
from trainer.evaluate.contestants import contestants, training_for
from trainer.evaluate.harness import Run, compete
from trainer.evaluate.network_arm import NetworkArm
from trainer.evaluate.protocols import Step, steps_of
from trainer.evaluate.report import Report
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories, from_sorted

HOUR_MS = 3_600_000
# Jobs at once: small kernels leave gaps that other processes fill; a job's own thread needs most of a core.
AT_ONCE = 14


@dataclass(frozen=True)
class Data:
    """A data set as it travels. folder: below the folder of data; format, history: as `evaluate` takes them."""

    folder: str
    format: str
    history: int = 50


@dataclass(frozen=True)
class Job:
    """One evaluation of one process."""

    data: str
    protocol: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    width: int = 128
    blocks: int = 2
    dropout: float = 0.2
    passes: int = 60
    later_passes: int = 3
    period_hours: int | None = None
    first: float = 0.5
    cut: float = 0.9


DATA = {
    "ml1m": Data("movielens-1m", "movielens-1m-sasrec", 200),
    "ml1m-times": Data("movielens-1m", "movielens-1m", 200),
    "beauty": Data("amazon-beauty-titles", "amazon-beauty"),
    "kuairand": Data("kuairand-pure-2022-04-25_05-08", "kuairand"),
    "retail": Data("online-retail", "online-retail"),
    "yoochoose": Data("yoochoose-100k", "yoochoose-100k"),
}
OVER_TIME = ("full-retrain", "fine-tune+replay", "frozen", "fine-tune")
PERIODS: dict[str, dict[str, Any]] = {
    "retail": {"arms": OVER_TIME[:3], "dropout": 0.2, "passes": 20, "period_hours": 672},
    "kuairand": {"arms": OVER_TIME, "dropout": 0.5, "passes": 20, "period_hours": 24},
    "yoochoose": {"arms": OVER_TIME, "dropout": 0.5, "passes": 20, "period_hours": 24, "first": 0.4},
}
JOBS = {
    **{f"ml1m-{seed}": Job("ml1m", "leave-one-out", ("model-no-text",), (seed,), passes=32) for seed in (1, 2, 3)},
    **{f"beauty-{seed}": Job("beauty", "leave-one-out", ("model",), (seed,), dropout=0.5) for seed in (1, 2, 3)},
    **{
        f"ml1m-times-{seed}": Job("ml1m-times", "successive", ("model-no-text",), (seed,), passes=24)
        for seed in (1, 2, 3)
    },
    "ml1m-sasrec": Job("ml1m", "leave-one-out", ("sasrec",), (1,), passes=100),
    "beauty-no-text": Job("beauty", "leave-one-out", ("model-no-text", "text-only"), (1,), dropout=0.5),
    "ml1m-text": Job("ml1m", "leave-one-out", ("model",), (1,), passes=32),
    **{
        f"{data}-{seed}": Job(data, "prequential", seeds=(seed,), width=64, **how)
        for data, how in PERIODS.items()
        for seed in (1, 2, 3)
    },
}


def prepare(target: Path, source: Path) -> None:
    """Read each data set, make its text vectors, and write what a job needs of both."""
    from trainer.evaluate.datasets import load
    from trainer.text import text_vectors

    target.mkdir(parents=True, exist_ok=True)
    for name, data in DATA.items():
        events = load(source / data.folder, data.format)
        histories = events.histories(data.history, repeats=False)
        titles = [events.titles.get(item, "") for item in events.vocabulary.ids]
        text = text_vectors(titles, PACKAGED, target / "texts").numpy().astype(np.float16)
        np.savez_compressed(
            target / f"{name}.npz", owner=histories.first, item_index=histories.item_index.astype(np.int32),
            action=histories.action, event_time=histories.event_time, text=text, name=events.name, clock=events.clock,
            items=events.vocabulary.size,
        )  # fmt: skip
        print(f"{name}: {len(histories)} events, text {text.shape}", flush=True)


def run(folder: Path, out: Path, names: Sequence[str]) -> None:
    """Run jobs, AT_ONCE at a time, in the order of JOBS."""
    out.mkdir(parents=True, exist_ok=True)
    waiting = list(names)
    running: dict[str, subprocess.Popen[bytes]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // AT_ONCE))}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name = waiting.pop(0)
            command = [sys.executable, "-m", __spec__.name, "one", str(folder), str(out), name]
            log = (out / f"{name}.log").open("w")
            running[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        for name in [name for name, process in running.items() if process.poll() is not None]:
            code = running.pop(name).returncode
            print(_line(out, name) if code == 0 else f"{name} failed: {out / name}.log", flush=True)
        time.sleep(0.5)


def stored(folder: Path, name: str) -> tuple[dict[str, Any], Histories]:
    """What `prepare` wrote of a data set, and its histories."""
    with np.load(folder / f"{name}.npz") as file:
        data = dict(file)
    histories = from_sorted(
        data["owner"], data["item_index"].astype(np.int64), data["action"], data["event_time"],
        history=DATA[name].history,
    )  # fmt: skip
    return data, histories


def one(folder: Path, out: Path, name: str) -> None:
    """Run one job in this process."""
    job = JOBS[name]
    data, histories = stored(folder, job.data)
    items, text = int(data["items"]), torch.from_numpy(data["text"].astype(np.float32))
    clock: Any = str(data["clock"])
    sizes = NetworkConfig(
        items, job.width, job.blocks, heads_of(job.width), dropout=job.dropout, history=histories.history,
        text=text.shape[1],
    )  # fmt: skip
    training = training_for(job.protocol, sizes, text, job.passes, job.later_passes)
    if "sasrec" in job.arms:
        training = replace(training, first=replace(training.first, patience=15))
    networks: list[NetworkArm] = []

    def network(arm: str, seed: int) -> Arm:
        networks.append(NetworkArm(arm, seed, training))
        return networks[-1]

    def steps() -> Iterator[Step]:
        return steps_of(job.protocol, histories, job.cut, job.first, (job.period_hours or 24) * HOUR_MS)

    described = {"name": str(data["name"]), "events": len(histories), "users": histories.user_count, "items": items}
    command = f"python -m tests.bench.gpu.quality run {folder} {out} {name}"
    runs: list[Run] = []
    for arm in contestants(job.arms, items, clock, job.protocol, network):
        runs += compete([arm], steps, items, job.seeds)
        content = Report(described, {**vars(job), "first": str(training.first)}, job.seeds, tuple(runs), command).json()
        (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    if job.protocol == "leave-one-out" and networks[0].network is not None:
        torch.save({"config": asdict(sizes), "state": networks[0].network.state_dict()}, out / f"{name}.pt")


def _line(out: Path, name: str) -> str:
    arms = json.loads((out / f"{name}.json").read_text())["arms"]
    seconds = {arm: _later_seconds(found) for arm, found in arms.items()}
    parts = []
    for arm, found in arms.items():
        figures, learned = found["mean"]["all"], found["learn_seconds"]
        part = f"{arm} {figures['ndcg@10']:.4f}/{figures['hr@10']:.4f} ({learned:.0f} s"
        goes_on = arm.startswith("fine-tune") and "full-retrain" in seconds
        faster = seconds["full-retrain"] / seconds[arm] if goes_on else 0.0
        parts.append(part + (f", later fits {faster:.1f}x faster)" if faster else ")"))
    return f"{name}: " + ", ".join(parts)


def _later_seconds(found: dict[str, Any]) -> float:
    """Seconds of all fits but the first."""
    return float(sum(part["learn_seconds"] for seed in found["seeds"].values() for part in seed["periods"][1:]))


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    if verb == "prepare":
        prepare(*(Path(argument) for argument in arguments))
    elif verb == "run":
        run(Path(arguments[0]), Path(arguments[1]), arguments[2:] or list(JOBS))
    else:
        one(Path(arguments[0]), Path(arguments[1]), arguments[2])
