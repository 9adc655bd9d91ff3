"""The newest checkpoint is damaged: the job goes on from the one before, and says what it reads again."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.flink import newest_checkpoint
from tests.harness import RunningJob
from tests.trial import Trial

# What changes between two checkpoints is a file of its own above 128 kb only (data-inline-threshold): with so many
# clicks, and histories that grew for so long, it is some 200.
PER_SECOND, GROWING_S = 600, 10.0


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
        before = newest_checkpoint(job.stack.state / "flink" / "checkpoints", skip=[checkpoint])
        assert before is not None
        own, older = ((folder / "_metadata").read_bytes() for folder in (checkpoint, before))
        files = [*checkpoint.iterdir(), *(checkpoint.parent / "shared").iterdir()]
        names = [file for file in files if file.name.encode() in own and file.name.encode() not in older]
        names[0].unlink()

    with Trial(job, "a file of the newest checkpoint missing", per_second=PER_SECOND):
        time.sleep(GROWING_S)
        assert "is missing" in damaged(job, harm)
