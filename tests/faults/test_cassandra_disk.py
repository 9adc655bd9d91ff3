"""The disk under Cassandra is full: rows wait, and with room again Cassandra and they come back by themselves."""

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
from tests.traffic import FIRST, make_clicks
from tests.trial import Trial

# Some segments of the commit log, 16 MiB each.
SIZE = "300m"
FULL_S = 20


@pytest.fixture(scope="module")
def small_disk(stack: Stack) -> Iterator[Path]:
    """Cassandra's data on a disk of their own."""
    stack.supervisor.stop()
    folder = stack.state / "cassandra" / "data"
    kept = folder.with_name("kept")
    server = stack.server("cassandra")
    server.process.stop()
    folder.rename(kept)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True).returncode == 0
    if mounted:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
    else:
        folder.rmdir()
        kept.rename(folder)
    server.start()
    server.wait()
    if not mounted:
        pytest.skip("only root may mount a small disk")
    yield folder
    stack.supervisor.stop()
    server.process.stop()
    shutil.rmtree(kept)
    shutil.copytree(folder, kept)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # dying threads may still hold its files
    folder.rmdir()
    kept.rename(folder)
    server.start()
    server.wait()


@pytest.fixture(scope="module")
def job(small_disk: Path, start_job: Callable[..., RunningJob], tmp_path_factory: pytest.TempPathFactory) -> RunningJob:
    """A job whose rows go to the small disk."""
    job = start_job()
    job.serve(make_release(tmp_path_factory.mktemp("releases") / "first", *FIRST))
    return job


@pytest.mark.long
def test_a_full_disk_under_cassandra_makes_rows_late_and_loses_none(job: RunningJob, small_disk: Path) -> None:
    starts = job.stack.server("cassandra").process.vitals().starts
    with Trial(job, f"disk of Cassandra full for {FULL_S} s"):
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:  # until no space is left
            while True:
                file.write(bytes(4096))
        # More rows than the open segments of the commit log have room for.
        job.click(make_clicks("full", 20_000, users=2000))
        time.sleep(FULL_S)
        assert job.stack.server("cassandra").trouble() is not None, "it was never full for Cassandra"
        filler.unlink()
    assert job.stack.server("cassandra").process.vitals().starts > starts, (
        "it ended, and the supervisor brought it back"
    )
