"""`torchrun --nproc-per-node 2 -m trainer`: two processes learn, the leader alone collects, judges and publishes.

Real Kafka, real processes; SIGTERM ends both between two steps.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.config import REPOSITORY
from deploy.local.ports import HOST, free_base
from deploy.local.stack import Stack
from schemas.item import Item
from tests.faults.test_trainer_crash import HOUR_MS, ITEMS, Trainer, walks
from tests.faults.test_trainer_run import wait_for
from tests.harness import RunningJob
from trainer.publish import verify

PATIENCE_S = 240.0


@pytest.fixture
def job(stack: Stack) -> Iterator[RunningJob]:
    """Topics and a producer; nobody reads but the trainer."""
    job = RunningJob(stack, "trainer_together")
    yield job
    job.leave()


class Two:
    """Two processes of `python -m trainer VERB`, and the lines of both."""

    def __init__(self, trainer: Trainer, *verb: str) -> None:
        self.lines: list[str] = []
        place = ("--nproc-per-node", "2", "--master-addr", HOST, "--master-port", str(free_base()))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *place, "-m", "trainer", *verb],
            env={**trainer.environment, "GLOO_SOCKET_IFNAME": "lo"},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            self.lines.extend(output)

    def says(self, word: str, within_s: float) -> bool:
        """Whether a line with this word comes in time."""
        deadline = time.monotonic() + within_s
        while not any(word in line for line in self.lines) and time.monotonic() < deadline:
            time.sleep(0.05)
        return any(word in line for line in self.lines)

    def end(self) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self._reader.join()
            print("".join(self.lines))  # what is to be looked at where a test fails


def test_two_processes_publish_one_release_after_the_other_and_end_together(job: RunningJob, tmp_path: Path) -> None:
    trainer = Trainer(job, tmp_path)
    now = int(time.time() * 1000)
    job.catalogue([Item(item) for item in ITEMS])
    job.click(walks("first", 220, 20, now - 60 * HOUR_MS))

    cycle = Two(trainer, "cycle")
    assert cycle.end() == 0, cycle.lines
    (first,) = trainer.announced()
    assert trainer.visible() == {first}
    assert sum("▸ tune" in line for line in cycle.lines) == 1, "one of two has a say"

    running = Two(trainer, "run", "--every", "1s")
    try:
        wait_for(running.lines, "nothing to do", 2)
        # A cycle that begins amid these clicks may find too few of them, or refuse its model: then more come.
        for again in range(9):
            job.click(walks(f"more-{again}", 90, 20, now - (40 - again) * HOUR_MS))
            if running.says("▸ publish", within_s=15.0):
                break
        wait_for(running.lines, "nothing to do", sum("nothing to do" in line for line in running.lines) + 2)
        assert running.process.poll() is None
    finally:
        running.process.send_signal(signal.SIGTERM)
        running.end()
    assert running.lines.count("trainer: stopped, as asked\n") == 1
    versions = trainer.announced()
    assert len(versions) >= 2 and set(versions) == trainer.visible()
    assert verify(trainer.releases / versions[1]).manifest.parent == first
