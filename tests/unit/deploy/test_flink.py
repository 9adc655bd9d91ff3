"""The choice of the checkpoint that a dead job goes on from."""

import os
from pathlib import Path

from deploy.local.flink import newest_checkpoint


def checkpoint(folder: Path, job: str, number: int, second: int, *, complete: bool = True) -> Path:
    """A checkpoint's folder; complete ones have their `_metadata`, written at `second`."""
    path = folder / job / f"chk-{number}"
    path.mkdir(parents=True)
    if complete:
        (path / "_metadata").write_bytes(b"x")
        os.utime(path / "_metadata", (second, second))
    return path


def test_no_folder_and_no_checkpoint_mean_a_fresh_start(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    (tmp_path / "job" / "shared").mkdir(parents=True)
    assert newest_checkpoint(tmp_path) is None


def test_one_that_was_still_being_written_is_passed_over(tmp_path: Path) -> None:
    older = checkpoint(tmp_path, "a", 7, 100)
    checkpoint(tmp_path, "a", 8, 200, complete=False)
    assert newest_checkpoint(tmp_path) == older


def test_the_newest_by_time_wins_whichever_run_of_the_job_wrote_it(tmp_path: Path) -> None:
    checkpoint(tmp_path, "z-first-run", 900, 100)
    newest = checkpoint(tmp_path, "a-second-run", 3, 200)
    assert newest_checkpoint(tmp_path) == newest


def test_numbers_are_compared_as_numbers_when_the_clock_cannot_tell(tmp_path: Path) -> None:
    checkpoint(tmp_path, "a", 9, 100)
    newest = checkpoint(tmp_path, "a", 10, 100)
    assert newest_checkpoint(tmp_path) == newest
