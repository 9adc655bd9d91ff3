"""Releases that nobody will ask for again go; what is served, its parent and what was announced lately stay."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from schemas.release import ModelRelease, Stage
from schemas.roll_back import RollBack
from tests.releases import make_release
from trainer.announce import Told
from trainer.config import Plan, Settings, plan
from trainer.keep import ANNOUNCED, prune
from trainer.publish import Release, verify

ITEMS = ["a", "b", "c"]


def shelf(folder: Path, count: int) -> list[ModelRelease]:
    """Releases with parameters and curves, oldest first."""
    made = []
    for number in range(count):
        version = f"20260101-{number:06d}"
        release = make_release(folder / "releases" / version, ITEMS, ITEMS, version)
        made.append(release)
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / f"{version}.pt").touch()
        (folder / "data" / "tensorboard" / version).mkdir(parents=True)
    return made


def planned(folder: Path, keep: int) -> Plan:
    settings = Settings()
    section = settings.trainer.model_copy(
        update={"data": folder / "data", "releases": folder / "releases", "keep_releases": keep}
    )
    return plan(settings.model_copy(update={"trainer": section}))


def test_the_newest_and_the_announced_stay(tmp_path: Path) -> None:
    releases = shelf(tmp_path, 12)
    made = planned(tmp_path, 3)
    # Rolled back to the second: it is what serves, and was announced last.
    announced = [*releases[4:], releases[1]]
    gone = prune(made, Told(announced, {}))
    left = sorted(path.name for path in (tmp_path / "releases").iterdir())
    expected = {release.version for release in (*releases[-3:], *announced[-ANNOUNCED:])}
    assert set(left) == expected and set(gone) == {r.version for r in releases} - expected
    for version in left:
        verify(tmp_path / "releases" / version)
    assert {path.stem for path in (tmp_path / "checkpoints").iterdir()} == expected
    assert {path.name for path in (tmp_path / "data" / "tensorboard").iterdir()} == expected


def test_nothing_goes_while_there_are_few(tmp_path: Path) -> None:
    releases = shelf(tmp_path, 3)
    assert prune(planned(tmp_path, 3), Told(releases, {})) == []
    assert prune(planned(tmp_path, 3), Told([dataclasses.replace(releases[0])], {})) == []


def test_what_serves_and_its_parent_stay_whatever_was_tried_since(
    make_release: Callable[..., Release], tmp_path: Path
) -> None:
    versions = [f"20260101-{number:06d}" for number in range(8)]
    releases = [make_release(version, parent) for version, parent in zip(versions, [None, *versions], strict=False)]

    def message(release: Release, stage: Stage) -> ModelRelease:
        return ModelRelease(release.manifest.version, release.folder.as_uri(), release.manifest_sha256, 1, stage)

    tried = [message(releases[7], "canary")] * ANNOUNCED
    refused = message(releases[5], "full")
    back = {refused.manifest_sha256: RollBack(refused.version, refused.manifest_sha256, "drift", 1, "1")}
    gone = prune(planned(tmp_path, 1), Told([message(releases[3], "full"), refused, *tried], back))
    assert gone == [versions[number] for number in (0, 1, 4, 5, 6)]
