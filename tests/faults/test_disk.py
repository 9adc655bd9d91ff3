"""The disk for checkpoints is full: rows go on, and when there is room again, so do checkpoints."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import FIRST
from tests.trial import Trial

# Some checkpoints of the few users of a test.
SIZE = "16m"
# Every 2 s a checkpoint fails.
FULL_S = 40


@pytest.fixture(scope="module")
def small_disk(stack: Stack) -> Iterator[Path]:
    """The folder of checkpoints, a disk of its own."""
    folder = stack.state / "flink" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def job(
    small_disk: Path, start_job: Callable[..., RunningJob], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningJob]:
    """A job whose checkpoints go to the small disk, and which is gone before the disk is."""
    job = start_job()
    job.serve(make_release(tmp_path_factory.mktemp("releases") / "first", *FIRST))
    yield job
    job.halt()  # its files are open


@pytest.mark.long
def test_a_full_disk_for_checkpoints_stops_no_row_and_heals_with_room(job: RunningJob, small_disk: Path) -> None:
    rest = job.stack.rest

    def newest() -> int:
        checkpoint = rest.checkpoint(rest.jobs()[-1].id)
        return checkpoint.number if checkpoint else 0

    job.eventually("there is a checkpoint", lambda: newest() > 0)
    restarts = rest.restarts(rest.jobs()[-1].id)
    with Trial(job, f"disk of checkpoints full for {FULL_S} s"):
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:  # until no space is left
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(small_disk).free < 4096
        time.sleep(FULL_S)
        filler.unlink()
        before = newest()
    job.eventually("checkpoints are made again", lambda: newest() > before, patience_s=30)
    assert rest.restarts(rest.jobs()[-1].id) == restarts, "the job fell with its checkpoints"
