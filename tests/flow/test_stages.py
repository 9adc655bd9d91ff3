"""A release on its way to its users, on real servers: signed, in shadow, to half of them, to all; and a bad one back.

Run with -s to see how long each step took.
"""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.release import encode_release
from schemas.roll_back import RollBack, decode_roll_back
from schemas.signing import make_key
from schemas.topics import MODEL_RELEASES, ROLL_BACKS
from streaming.topic import messages
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import ITEM_IDS, visitors

USERS = [f"stage-{number}" for number in range(100)]
PER_SECOND = 150
# What serves; what the next cycle makes of it; and what has nothing in common with either.
SERVED, NEXT, BAD = "20260101-000000", "20260102-000000", "20260103-000000"
ORDERS = {
    SERVED: ITEM_IDS,
    NEXT: [*ITEM_IDS[3:6], *ITEM_IDS[:3], *ITEM_IDS[6:]],
    BAD: ITEM_IDS[::-1],
}
# A model that does harm is out of service within this, by itself.
PROMISED_S = 60.0


class Shop:
    """The job, its users, and the trainer's commands with a key of their own."""

    def __init__(self, job: RunningJob, folder: Path, keys: Path) -> None:
        self.job, self._folder = job, folder
        self._env = {
            **job.environment,
            "FRESHREC_TRAINER__RELEASES": str(folder),
            "FRESHREC_TRAINER__SIGNING_KEY": str(keys / "release.key"),
        }

    def trainer(self, *arguments: str, ends_with: int = 0) -> str:
        """A command of the trainer; what it said."""
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *arguments],
            env=self._env, cwd=self._folder, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == ends_with, done.stderr
        return done.stdout + done.stderr

    def publish(self, version: str, *options: str) -> None:
        self.trainer("publish", str(self._folder / version), *options)

    def served(self, since: float) -> Counter[str]:
        """Rows written after a moment, by model; each is wholly of its model."""
        rows = self.job.session.execute(
            f"SELECT item_ids, model_version, WRITETIME(item_ids) AS written "
            f"FROM {self.job.settings.keyspace}.recommendations"
        )
        found: Counter[str] = Counter()
        for row in rows:
            if row.model_version and row.written > since * 1e6:
                order = [item for item in ORDERS[row.model_version] if item in set(row.item_ids)]
                assert row.item_ids == order, "a row of two models"
                found[row.model_version] += 1
        return found

    def becomes(self, promise: str, holds: Callable[[Counter[str]], bool]) -> None:
        """Wait until the rows of the last second and a half, some of every user's, are as promised."""
        began = time.time()
        self.job.eventually(promise, lambda: holds(self.served(time.time() - 1.5)))
        print(f"{promise}: {time.time() - began:.1f} s")

    def dead(self) -> set[str]:
        return {letter.reason for letter in self.job.dead_letters()}

    def rolled_back(self) -> list[RollBack]:
        found = [decode_roll_back(m.value()) for m in messages(self.job.settings, self.job.settings.topic(ROLL_BACKS))]
        return [back for back in found if isinstance(back, RollBack)]


@pytest.fixture
def shop(start_job: Callable[..., RunningJob], tmp_path: Path) -> Shop:
    make_key(tmp_path / "keys" / "release.key")
    job = start_job(FRESHREC_RELEASE_KEYS=str(tmp_path / "keys"), FRESHREC_STREAMING__LEAST_OVERLAP="0.1")
    return Shop(job, tmp_path / "releases", tmp_path / "keys")


def test_a_release_passes_its_stages_and_a_bad_one_goes_by_itself(shop: Shop, tmp_path: Path) -> None:
    job = shop.job
    made = {v: make_release(tmp_path / "releases" / v, ITEM_IDS, order, v) for v, order in ORDERS.items()}
    with visitors(job, PER_SECOND, lambda n: (USERS[n % len(USERS)], ITEM_IDS[30 + n % 50])):
        job.publish(made[BAD])
        job.eventually("an unsigned message is refused", lambda: "release-unsigned" in shop.dead())
        shop.publish(SERVED)
        shop.becomes("the first release serves", lambda rows: set(rows) == {SERVED})

        shop.publish(NEXT, "--stage", "shadow")
        job.eventually("the shadow is compared", lambda: job.metric("score_compared") > 0)
        assert set(shop.served(time.time() - 1.5)) == {SERVED}
        assert job.metric("score_by_trial") == 0

        shop.trainer("promote", "--stage", "canary", "--percent", "50")
        shop.becomes("half of the users get the canary", lambda rows: 0.3 < rows[NEXT] / max(1, rows.total()) < 0.7)

        began = time.time()
        shop.publish(BAD, "--stage", "canary", "--percent", "50")
        shop.becomes("the bad model serves some", lambda rows: rows[BAD] > 0)
        shop.becomes("the bad model goes by itself", lambda rows: rows.total() > 0 and not rows[BAD])
        assert time.time() - began < PROMISED_S
        job.eventually("the job says so", lambda: bool(shop.rolled_back()))
        [back] = shop.rolled_back()
        assert (back.version, back.manifest_sha256) == (BAD, made[BAD].manifest_sha256)
        assert back.reason.startswith("overlap: 0.0%")
        print(f"said: {back.reason}, {back.at / 1000 - began:.1f} s after the command began")
        again = shop.trainer("publish", str(tmp_path / "releases" / BAD), ends_with=5)
        assert "the job has rolled release 20260103-000000 back (overlap: 0.0%" in again
        assert "rolled back by the job" in shop.trainer("show")

        shop.publish(NEXT, "--stage", "canary", "--percent", "50")
        shop.becomes("half of the users get the canary again", lambda rows: rows[NEXT] > 0)
        shop.trainer("promote")
        shop.becomes("all users get it", lambda rows: set(rows) == {NEXT})
        version = int(NEXT.replace("-", ""))
        job.eventually("metrics say so", lambda: job.metric("score_model_version") == version)

        topic = job.settings.topic(MODEL_RELEASES)
        old = next(m for m in messages(job.settings, topic) if m.key() == SERVED.encode())
        job.send(MODEL_RELEASES, old.key(), old.value())
        job.eventually("an old message sent again is refused", lambda: "release-sequence" in shop.dead())
        shop.trainer("roll-back", SERVED)
        shop.becomes("the honest roll-back is followed", lambda rows: set(rows) == {SERVED})
    assert encode_release(made[BAD]) in {letter.value for letter in job.dead_letters()}
