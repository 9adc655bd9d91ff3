"""Removes checkpoints that nobody will start from again, so that the disk stays bounded.

Flink removes what a running job supersedes. What stays behind are the second newest checkpoint of each former life of
the JobManager, and what a crash left half written.
"""

import shutil
import time
from pathlib import Path

# The newest so many stay, of whatever life: those of the running job, and one to fall back on.
KEEP = 3
# Younger files may belong to a checkpoint under way, which lasts two minutes at most (execution.checkpointing.timeout).
SETTLED_S = 600.0


def prune_checkpoints(folder: Path, now: float | None = None) -> int:
    """Remove old checkpoints in `folder`/JOB/chk-N and the shared files that none of the kept ones names; how many."""
    settled = (time.time() if now is None else now) - SETTLED_S
    complete = sorted(folder.glob("*/chk-*/_metadata"), key=_age, reverse=True)
    kept, superseded = complete[:KEEP], complete[KEEP:]
    going = [file.parent for file in superseded]
    going += [part for part in folder.glob("*/chk-*") if not (part / "_metadata").exists() and _age(part) < settled]
    for checkpoint in going:
        shutil.rmtree(checkpoint, ignore_errors=True)
    named = b"".join(file.read_bytes() for file in kept if file.exists())
    for file in (*folder.glob("*/shared/*"), *folder.glob("*/taskowned/*")):
        # A checkpoint names each file it consists of.
        if _age(file) < settled and file.name.encode() not in named:
            file.unlink(missing_ok=True)
    for run in folder.glob("*"):
        if run.is_dir() and not any(part for part in run.rglob("*") if not part.is_dir()) and _age(run) < settled:
            shutil.rmtree(run, ignore_errors=True)
    return len(going)


def _age(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return float("inf")  # Flink was quicker
