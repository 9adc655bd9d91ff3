"""kill -9 of the trainer at every step of a cycle: the next start goes on, and no half release is ever to be seen.

Real Kafka, real processes; what is killed and when is told by the trainer's own lines and files.
"""

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from deploy.local.config import REPOSITORY
from deploy.local.stack import Stack
from schemas.click import Click
from schemas.item import Item
from tests.harness import RunningJob
from tests.trial import note
from trainer.announce import folder_of, told
from trainer.collect import stored_clicks
from trainer.config import Settings
from trainer.publish import release_folders, verify

ITEMS = [f"thing-{number}" for number in range(60)]
HABIT = 0.9  # the share of clicks that follow the one before; popularity can know nothing of it
HOUR_MS = 3_600_000
PATIENCE_S = 120.0


class Trainer:
    """`python -m trainer cycle` in folders of its own, and what may be looked at while it runs."""

    def __init__(self, job: RunningJob, folder: Path) -> None:
        self.job = job
        self.data, self.releases, self.checkpoints = folder / "data", folder / "releases", folder / "checkpoints"
        self.lines: list[str] = []
        self.settings = Settings(namespace=job.namespace, kafka=job.settings.kafka)
        self.environment = {
            **job.environment,
            "FRESHREC_TRAINER__DATA": str(self.data),
            "FRESHREC_TRAINER__RELEASES": str(self.releases),
            "FRESHREC_TRAINER__FIRST_PASSES": "2",
        }

    def said(self, word: str) -> bool:
        return any(word in line for line in self.lines)

    def visible(self) -> set[str]:
        return {folder.name for folder in self.releases.glob("[!.]*")}

    def collected(self) -> str:
        """What it notes of how far it has collected."""
        file = self.data / "offsets.json"
        return file.read_text() if file.exists() else ""

    def announced(self) -> list[str]:
        return [message.version for message in told(self.settings).releases]

    def run(self, killed_when: Callable[[], bool] | None = None) -> int:
        """One cycle, killed as soon as something holds; its exit code, -9 when it was killed."""
        self.lines = []
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer", "cycle"],
            env=self.environment,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout as output:
            reader = threading.Thread(target=lambda: self.lines.extend(output))
            reader.start()
            deadline = time.monotonic() + PATIENCE_S
            while process.poll() is None:
                if time.monotonic() > deadline or (killed_when is not None and killed_when()):
                    process.kill()
                    break
                time.sleep(0.0005)
            code = process.wait()
            reader.join()
        assert time.monotonic() < deadline, self.lines
        return code


@pytest.fixture
def job(stack: Stack) -> Iterator[RunningJob]:
    """Topics and a producer; nobody reads but the trainer."""
    job = RunningJob(stack, "trainer_crash")
    yield job
    job.leave()


def walks(seed: str, users: int, length: int, start_ms: int) -> list[Click]:
    """Users who mostly go from an item to the next one, a minute apart."""
    choose = random.Random(seed)
    clicks = []
    for user in range(users):
        item = choose.randrange(len(ITEMS))
        begin = start_ms + choose.randrange(12 * HOUR_MS)
        for step in range(length):
            clicks.append(Click(f"{seed}-{user}-{step}", f"{seed}-{user}", ITEMS[item], begin + step * 60_000))
            item = (item + 1 if choose.random() < HABIT else choose.randrange(len(ITEMS))) % len(ITEMS)
    return sorted(clicks, key=lambda click: click.event_time)


def test_a_trainer_killed_at_any_step_goes_on_and_shows_nothing_half_done(job: RunningJob, tmp_path: Path) -> None:
    trainer = Trainer(job, tmp_path)
    now = int(time.time() * 1000)
    produced: list[str] = []

    def produce(seed: str, users: int, start_ms: int) -> None:
        clicks = walks(seed, users, 20, start_ms)
        job.click(clicks)
        produced.extend(click.event_id for click in clicks)

    def check() -> None:
        """What must hold whenever anybody looks."""
        for version in trainer.visible():
            verify(trainer.releases / version)
        for message in told(trainer.settings).releases:
            assert verify(folder_of(message)).manifest.version == message.version

    def killed(step: str, when: Callable[[], bool]) -> None:
        assert trainer.run(when) == -9, f"it ended before it could be killed at {step}: {trainer.lines}"
        check()

    def building(name: str) -> bool:
        return any(trainer.releases.glob(f".building-*/{name}"))

    def killed_between_rename_and_announcement() -> None:
        """In the short time in which a release is there and nobody knows of it: tried until that was hit."""
        known, before = trainer.announced(), trainer.visible()
        killed("publish", lambda: trainer.visible() > before)
        if trainer.announced() != known:
            produce(f"again-{len(known)}", 60, now - 20 * HOUR_MS)
            killed_between_rename_and_announcement()

    job.catalogue([Item(item) for item in ITEMS])
    produce("first", 220, now - 60 * HOUR_MS)
    killed("collect, no offset stored", lambda: any(trainer.data.glob("clicks/*/*.parquet")))
    before = trainer.collected()
    killed("collect, between two partitions", lambda: trainer.collected() != before)
    killed("tune", lambda: trainer.said("▸ tune") and any(trainer.data.glob("tensorboard/*/events*")))
    killed("export", lambda: trainer.said("▸ export") and building("*"))
    killed("judge", lambda: trainer.said("▸ judge"))
    killed("publish", lambda: trainer.said("▸ publish"))
    assert trainer.visible() == set() and trainer.announced() == []
    killed_between_rename_and_announcement()
    orphans = trainer.visible()
    assert trainer.run() == 0, trainer.lines
    check()

    first = trainer.announced()[-1]
    assert first not in orphans, "a cycle that could not announce its release is done again"
    assert trainer.releases.joinpath(first) in release_folders(trainer.releases)
    assert Counter(stored_clicks(trainer.data)["event_id"]) == Counter(produced)
    on_disk = pl.concat(pl.read_parquet(part) for part in trainer.data.glob("clicks/*/*.parquet"))
    assert on_disk.height == len(produced), "a click lies in two parts"
    assert not list(trainer.data.rglob(".*.tmp")), "left half written"

    # The next cycle goes on from what serves, not from what nobody was told of; and its crash changes nothing of that.
    produce("second", 90, now - 40 * HOUR_MS)
    killed_between_rename_and_announcement()
    first = trainer.announced()[-1]
    # The last that a cycle does is to note which clicks it has been through: by then its release must be announced.
    marker = trainer.data / "seen.json"
    seen = marker.read_text()
    assert trainer.run(lambda: marker.read_text() != seen) in (-9, 0), trainer.lines
    check()
    second = verify(trainer.releases / trainer.announced()[-1])
    assert second.manifest.version > first
    assert second.manifest.parent == first
    assert trainer.said(f"going on from {first}"), trainer.lines
    assert Counter(stored_clicks(trainer.data)["event_id"]) == Counter(produced)
    assert trainer.run() == 0 and trainer.said("nothing to do"), trainer.lines
    note("trainer killed (kill -9) at each of its steps")
