"""Which releases stay on disk: the newest, whatever was announced lately, and what a roll-back would go to.

What goes first gets a name that no reader takes for a release, then is removed: half a release is never to be seen.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from schemas.release import MANIFEST, Manifest, ModelRelease
from trainer.config import Plan
from trainer.progress import say
from trainer.publish import release_folders

# The job remembers so many announcements over a restart, and goes back through them when a release does not load.
ANNOUNCED = 5
_GOING = ".going-"


def prune(plan: Plan, announced: Sequence[ModelRelease]) -> list[str]:
    """Remove what nobody will ask for again, with its parameters and curves; returns the versions.

    announced: every release message, oldest first.
    """
    for left in plan.releases.glob(f"{_GOING}*"):  # of a cycle that was killed amid this
        shutil.rmtree(left)
    folders = {folder.name: folder for folder in release_folders(plan.releases)}
    kept = {*sorted(folders)[-plan.keep_releases :], *(message.version for message in announced[-ANNOUNCED:])}
    if announced and (served := folders.get(announced[-1].version)) is not None:
        manifest = Manifest.model_validate_json((served / MANIFEST).read_bytes())
        kept.add(manifest.parent or "")
    going = sorted(folders.keys() - kept)
    for version in going:
        hidden = plan.releases / f"{_GOING}{version}"
        folders[version].rename(hidden)
        shutil.rmtree(hidden)
        plan.checkpoint(version).unlink(missing_ok=True)
        shutil.rmtree(plan.curves / version, ignore_errors=True)
    if going:
        say(f"removed {len(going)} releases before {min(kept & folders.keys(), default='now')}: {', '.join(going)}")
    return going
