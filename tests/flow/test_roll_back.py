"""`trainer roll-back` takes effect in the running job; run with -s to see how long it took, and where."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from streaming.topic import served_release
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import visitors

# As many as a small shop sells; the size of a release is most of the time that loading takes.
ITEM_IDS = [f"item-{number}" for number in range(20_000)]
VERSIONS = ("20260101-000000", "20260102-000000")
# Clicks a second, each of a user of its own: a row is written once, and its write time is when its model served.
PER_SECOND = 100


def first_row(job: RunningJob, version: str, since: float) -> float:
    """When the first row of a version was written after a moment, in s."""
    written: list[float] = []

    def serves() -> bool:
        rows = job.session.execute(
            f"SELECT model_version, WRITETIME(item_ids) AS written FROM {job.settings.keyspace}.recommendations"
        )
        written[:] = [row.written / 1e6 for row in rows if row.model_version == version]
        return any(when > since for when in written)

    job.eventually(f"{version} serves", serves)
    return min(when for when in written if when > since)


def test_a_roll_back_takes_effect_while_clicks_flow(start_job: Callable[..., RunningJob], tmp_path: Path) -> None:
    job = start_job()
    older, newer = (
        make_release(tmp_path / "releases" / version, ITEM_IDS, favourites, version)
        for version, favourites in zip(VERSIONS, (ITEM_IDS, ITEM_IDS[::-1]), strict=True)
    )
    environment = {**job.environment, "FRESHREC_TRAINER__RELEASES": str(tmp_path / "releases")}
    with visitors(job, PER_SECOND, lambda n: (f"visitor-{n}", ITEM_IDS[5])):
        for release in (older, newer):
            began = time.time()
            job.publish(release)
            served = first_row(job, release.version, began)
            print(f"\n{release.version} first served {served - began:.3f} s after its message")
        for version in (older.version, newer.version, older.version):
            began = time.time()
            done = subprocess.run(
                [sys.executable, "-m", "trainer", "roll-back", version],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            ended = time.time()
            message = served_release(job.settings)
            assert message is not None and message.version == version
            announced = message.published_at / 1000
            served = first_row(job, version, announced)
            print(
                f"roll-back to {version}: message {announced - began:.3f} s after the command began, "
                f"first row {served - announced:.3f} s after the message, {served - began:.3f} s after the command, "
                f"which took {ended - began:.3f} s"
            )
