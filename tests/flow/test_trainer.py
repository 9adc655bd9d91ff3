"""The trainer's command line on real servers: from clicks in Kafka to rows of its model, forward and back."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deploy.local.config import REPOSITORY
from schemas.click import Click
from schemas.item import Item
from streaming.topic import served_release
from tests.harness import RunningJob

ITEMS = [f"thing-{number}" for number in range(60)]
HABIT = 0.9  # the share of clicks that follow the one before; popularity can know nothing of it
HOUR_MS = 3_600_000


def follower(item: str) -> str:
    """What most people take after an item."""
    return ITEMS[(ITEMS.index(item) * 7 + 3) % len(ITEMS)]


def walks(seed: str, users: int, length: int, start_ms: int) -> list[Click]:
    """Users who mostly go from an item to its follower, a minute apart, in order of time."""
    choose = random.Random(seed)
    clicks = []
    for user in range(users):
        item = choose.choice(ITEMS)
        begin = start_ms + choose.randrange(24 * HOUR_MS)
        for step in range(length):
            clicks.append(Click(f"{seed}-{user}-{step}", f"{seed}-walker-{user}", item, begin + step * 60_000))
            item = follower(item) if choose.random() < HABIT else choose.choice(ITEMS)
    return sorted(clicks, key=lambda click: click.event_time)


def test_a_model_trained_from_the_clicks_serves_and_can_be_taken_back(
    start_job: Callable[..., RunningJob], tmp_path: Path
) -> None:
    job = start_job()
    environment = {
        **job.environment,
        **job.stack.environment_of("trainer"),
        "FRESHREC_NAMESPACE": job.namespace,
        "FRESHREC_TRAINER__DATA": str(tmp_path / "data"),
        "FRESHREC_TRAINER__RELEASES": str(tmp_path / "releases"),
    }

    def trainer(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *words],
            env=environment,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    now = int(time.time() * 1000)
    job.catalogue([Item(item, title=item.title()) for item in ITEMS])
    job.click(walks("first", users=300, length=25, start_ms=now - 60 * HOUR_MS))
    trainer("cycle")
    first = served_release(job.settings)
    assert first is not None

    fresh = iter(range(10**6))

    def serves(version: str) -> None:
        """Wait until rows are of a version; the row must then begin with what follows the user's last item."""
        user = f"guest-{version}-{next(fresh)}"

        def holds() -> bool:
            job.click([Click(f"{user}-{time.time_ns()}", user, ITEMS[5], now)])
            row = job.row(user)
            return row is not None and row.model_version == version

        job.eventually(f"{version} serves", holds)
        row = job.row(user)
        assert row is not None
        assert follower(ITEMS[5]) in row.item_ids[:3], row.item_ids[:5]

    serves(first.version)

    job.erase("first-walker-0")
    job.click(walks("second", users=100, length=25, start_ms=now - 30 * HOUR_MS))
    trainer("cycle")
    second = served_release(job.settings)
    assert second is not None and second.version > first.version
    serves(second.version)

    assert "nothing to do" in trainer("cycle")
    trainer("roll-back")
    serves(first.version)
    shown = trainer("show")
    assert first.version in shown and second.version in shown
