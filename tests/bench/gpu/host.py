"""A large host with a GPU: configurations with more room than a laptop's, and who uses its cores and its GPU."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.local import cassandra, flink, kafka
from deploy.local.config import load_local_settings
from deploy.local.stack import Stack
from schemas.compiled import prepare as compile_loops
from tests.bench.report import Run
from tests.bench.systems import METRICS_S, Job

# What a scorer says when a release enters service.
SERVES = re.compile(r"score: serving release \S+ on (\w+)")
BUSY = ("busyTimeMsPerSecond", "backPressuredTimeMsPerSecond")
# What a laptop's stack has too little of here, by file; and a TaskManager that stands still for a round is not dead.
ROOMIER = {
    "kafka/jvm.options": {"-Xmx384m": "-Xmx4g"},
    "kafka/server.properties": {"network.threads=2": "network.threads=6", "io.threads=4": "io.threads=8"},
    "cassandra/jvm.options": {"-Xms512m": "-Xms8g", "-Xmx512m": "-Xmx8g", "MemorySize=256m": "MemorySize=2g"},
    "cassandra/cassandra.yaml": {
        "heap_space: 96MiB": "heap_space: 2048MiB", "commitlog_total_space: 512MiB": "commitlog_total_space: 8192MiB",
        "segment_size: 16MiB": "segment_size: 32MiB", "compactors: 1": "compactors: 2",
    },
    "flink/config.yaml": {
        "heartbeat.timeout: 8 s": "heartbeat.timeout: 60 s", "process.size: 768m": "process.size: 1536m",
        "process.size: 1800m": "process.size: 4400m", "heap.size: 384m": "heap.size: 1024m",
        "off-heap.size: 448m": "off-heap.size: 2048m", "managed.size: 256m": "managed.size: 512m",
        "network.min: 64m": "network.min: 128m", "network.max: 64m": "network.max: 128m",
    },
}  # fmt: skip


@contextmanager
def cost(job: Job) -> Iterator[dict[str, Any]]:
    """Cores used meanwhile by thread, all TaskManagers taken together, and by all else; and the GPU's load."""
    ask = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "500"]
    gpu = subprocess.Popen(ask, stdout=subprocess.PIPE, text=True) if shutil.which(ask[0]) else None
    used: dict[str, Any] = {}
    before, machine, began = threads(job), psutil.cpu_times(), time.monotonic()
    try:
        yield used
    finally:
        seconds, after, now = time.monotonic() - began, threads(job), psutil.cpu_times()
        spent = {name: (after[name] - before.get(name, 0.0)) / seconds for name in after}
        used["cores"] = {
            server: sum(cores for name, cores in spent.items() if name.startswith(server))
            for server in ("taskmanager", "jobmanager", "kafka", "cassandra")
        }
        kinds = ("user", "nice", "system", "idle", "steal")
        used["cores_of_all"] = {kind: (getattr(now, kind) - getattr(machine, kind)) / seconds for kind in kinds}
        used["cores_by_thread"] = dict(sorted(spent.items(), key=lambda one: -one[1])[:24])
        if gpu is not None:
            gpu.terminate()
            said = re.findall(r"(\d+), *(\d+)", gpu.communicate()[0])
            used["gpu_percent"] = float(np.mean([int(load) for load, _ in said] or [0]))
            used["gpu_mib"] = max((int(memory) for _, memory in said), default=0)


def threads(job: Job) -> dict[str, float]:
    """CPU seconds so far by process and kind of thread."""
    found: dict[str, float] = {}
    for server in job.stack.plan.wanted:
        for stat in Path(f"/proc/{job.stack.server(server).process.pid}/task").glob("*/stat"):
            with suppress(OSError):
                head, _, rest = stat.read_text().rpartition(")")
                kind = f"{server.partition('-')[0]}: {re.sub(r'[0-9]+', '#', head.partition('(')[2])}"
                ticks = sum(map(int, rest.split()[11:13]))
                found[kind] = found.get(kind, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return found


def busy(job: Job) -> dict[str, dict[str, float]]:
    """Ms of a second that the busiest subtask of each of Flink's tasks works, and waits for who comes after it."""
    rest, found = job.stack.rest, {}
    with suppress(Exception):  # a figure beside the figures
        tasks = f"/jobs/{rest.jobs()[-1].id}"
        for pause_s in (METRICS_S / 2, 0):  # Flink answers with what it knows, and then looks
            for vertex in rest.get(tasks)["vertices"]:
                ask = f"{tasks}/vertices/{vertex['id']}/subtasks/metrics?get={','.join(BUSY)}"
                found[vertex["name"][:60]] = {one["id"]: one["max"] for one in rest.get(ask)}
            time.sleep(pause_s)
    return found


def enlarge(folder: Path) -> None:
    """Let the stack start with larger copies of its configurations. Raises ValueError where one is another by now."""
    for module, name in ((kafka, "kafka"), (cassandra, "cassandra"), (flink, "flink")):
        shutil.copytree(module.CONFIGS, folder / name, dirs_exist_ok=True)
        setattr(module, "CONFIGS", folder / name)  # noqa: B010 - a constant to everybody else
    for file, changes in ROOMIER.items():
        text = (folder / file).read_text()
        for old, new in changes.items():
            if old not in text:
                raise ValueError(f"{file} has no {old}")
            text = text.replace(old, new)
        (folder / file).write_text(text)


@contextmanager
def large_stack(run: Run, taskmanagers: int, state: Path | None) -> Iterator[Stack]:
    """Servers with more room. state: where their files and logs stay; without it they are gone in the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by the door that takes the servers along
    folder = state or Path(tempfile.mkdtemp(prefix="freshrec-bench-"))
    compile_loops()
    enlarge(folder / "configs")
    stack = Stack.create(load_local_settings(state=folder / "state", taskmanagers=taskmanagers), free_ports=True)
    try:
        stack.start_servers(run.say)
        yield stack
    finally:
        stack.stop()
        if state is None:
            shutil.rmtree(folder, ignore_errors=True)


def serving_on(stack: Stack) -> Counter[str]:
    """Providers by how often a TaskManager's log says that a release is served on them."""
    logs = (stack.state / "flink" / "log").glob("*taskexecutor*.log")
    return Counter(name for log in logs for name in SERVES.findall(log.read_text(errors="replace")))


def gpu() -> str:
    """Name and driver."""
    return _ask_gpu("name,driver_version") or "none"


def gpu_mib() -> int:
    """Memory in use, by whomever."""
    return int(_ask_gpu("memory.used") or 0)


def _ask_gpu(what: str) -> str:
    ask = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    return subprocess.run(ask, capture_output=True, text=True).stdout.strip() if shutil.which(ask[0]) else ""
