"""Checkpoints are damaged or cannot be written: the job goes on from what is whole, and says what it reads again."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.flink import newest_checkpoint
from tests.harness import RunningJob
from tests.trial import Trial

# What the state of these tests needs is some hundred KiB.
SMALL = "4m"


def damaged(job: RunningJob, harm: Callable[[Path], None]) -> str:
    """Stop the job, harm its newest checkpoint, start it; what it said."""
    job.halt()
    checkpoint = newest_checkpoint(job.stack.state / "flink" / "checkpoints")
    assert checkpoint is not None
    harm(checkpoint)
    job.resume()
    said = job.stack.server("jobmanager").process.log_file.read_text().splitlines()
    lines = [line for line in said if line.startswith("resume: ")]
    assert f"{checkpoint.name} is damaged" in lines[0], lines
    assert "going on from" in lines[-1] and "are read (again)" in lines[-1], lines
    assert checkpoint.name not in lines[-1]
    return "\n".join(lines)


def test_a_truncated_newest_checkpoint_gives_way_to_the_one_before(job: RunningJob) -> None:
    def harm(checkpoint: Path) -> None:
        metadata = checkpoint / "_metadata"
        metadata.write_bytes(metadata.read_bytes()[:-200])

    with Trial(job, "newest checkpoint truncated"):
        assert "_metadata cannot be read" in damaged(job, harm)


@pytest.mark.long
def test_a_newest_checkpoint_that_lacks_a_file_gives_way_to_the_one_before(job: RunningJob) -> None:
    def harm(checkpoint: Path) -> None:
        next(file for file in checkpoint.iterdir() if file.name != "_metadata").unlink()

    with Trial(job, "a file of the newest checkpoint missing"):
        assert "is missing" in damaged(job, harm)


@pytest.fixture
def small_disk(job: RunningJob) -> Iterator[Path]:
    """The folder of checkpoints on a disk of its own, of SMALL."""
    folder = job.stack.state / "flink" / "checkpoints"
    job.halt()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        job.resume()
        pytest.skip("a small disk can only be mounted by root")
    try:
        job.start(FRESHREC_STREAMING__START_EMPTY="true")
        yield folder
    finally:
        job.halt()
        subprocess.run(["umount", str(folder)], check=True)
        job.start(FRESHREC_STREAMING__START_EMPTY="true")


@pytest.mark.long
def test_a_full_disk_for_checkpoints_stops_no_row_and_heals_with_room(job: RunningJob, small_disk: Path) -> None:
    rest = job.stack.rest

    def newest() -> int:
        checkpoint = rest.checkpoint(rest.jobs()[-1].id)
        return checkpoint.number if checkpoint else 0

    job.eventually("there is a checkpoint", lambda: newest() > 0)
    with Trial(job, "disk of checkpoints full for 20 s"):
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:  # until no space is left
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(small_disk).free < 4096
        time.sleep(20)
        filler.unlink()
        before = newest()
    job.eventually("checkpoints are made again", lambda: newest() > before, patience_s=30)
