"""State that an older version of the job left behind: what the job had been told by then, and the savepoint, packed.

    python -m tests.older NAME      # with the code as it is: tests/golden/state-NAME.tgz, once for each layout of state

NAME is the namespace, and so part of the topics' names that the savepoint knows. All events lie around one moment, so
that a test can go on from there in years.
"""

import json
import sys
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from deploy.local.config import load_local_settings
from deploy.local.stack import Stack
from schemas.item import Item
from schemas.release import ModelRelease
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import FIRST, ITEM_IDS, make_clicks

GOLDEN = Path(__file__).parent / "golden"
# 2026-11-28 12:00 UTC.
MOMENT_MS = 1_795_867_200_000
# Users whose rings have overflown, and what they do after the savepoint.
BEFORE, AFTER = (clicks := make_clicks("older", 1000, users=12, now_ms=MOMENT_MS))[:800], clicks[800:]
ERASED = BEFORE[0].user_id
GONE = ITEM_IDS[3]
SETTLED_S = 3.0


def tell(job: RunningJob, release: ModelRelease) -> None:
    """What the job knows at the savepoint; every partition gets the same records in the same order each time."""
    job.publish(release)
    job.catalogue([Item(GONE, available=False)])
    job.click(BEFORE)
    job.erase(ERASED)


def unpack(golden: Path, checkpoints: Path) -> None:
    """Lay a savepoint where a start finds it as the newest checkpoint."""
    # Python knows filters since 3.11.4, and wants one since 3.12.
    how: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(golden) as packed:
        packed.extractall(checkpoints / "older" / "chk-1", **how)  # noqa: S202 - our own file


def make(name: str) -> Path:
    """Run the job, tell it everything, and pack its savepoint."""
    with tempfile.TemporaryDirectory(prefix="freshrec-golden-") as folder:
        stack = Stack.create(load_local_settings(state=Path(folder)), free_ports=True)
        try:
            stack.start_servers(print)
            job = RunningJob(stack, name)
            job.start()
            tell(job, make_release(Path(folder) / "release", *FIRST))
            told = {"features_records": len(BEFORE) + 1, "control_releases": 1, "control_items": 1}
            for metric, count in told.items():
                job.eventually(f"{metric} is {count}", lambda m=metric, n=count: job.metric(m) == n)  # type: ignore[misc]
            time.sleep(SETTLED_S)
            savepoint = _savepoint(job, Path(folder) / "savepoint")
            target = GOLDEN / f"state-{name}.tgz"
            with tarfile.open(target, "w:gz") as packed:
                for file in sorted(savepoint.iterdir()):
                    packed.add(file, file.name)
            job.stop()
        finally:
            stack.stop(print)
    return target


def _savepoint(job: RunningJob, folder: Path) -> Path:
    """Let Flink write a savepoint, which other than a checkpoint may be moved; where it lies."""
    rest = job.stack.rest
    path = f"/jobs/{rest.jobs()[-1].id}/savepoints"
    wanted = {"target-directory": folder.as_uri(), "formatType": "CANONICAL"}
    request = urllib.request.Request(  # noqa: S310 (http)
        rest.url + path, json.dumps(wanted).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 (http)
        trigger = json.load(answer)["request-id"]

    def completed() -> bool:
        return bool(rest.get(f"{path}/{trigger}")["status"]["id"] == "COMPLETED")

    job.eventually("the savepoint is written", completed)
    return Path(rest.get(f"{path}/{trigger}")["operation"]["location"].removeprefix("file:"))


if __name__ == "__main__":
    print(make(sys.argv[1]))
