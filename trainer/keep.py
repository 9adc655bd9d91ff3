"""Which releases stay on disk: the newest, whatever was announced lately, and what a roll-back would go to.

What goes first gets a name that no reader takes for a release, then is removed: half a release is never to be seen.
"""

from __future__ import annotations

import shutil

from trainer.announce import Told, parent_of
from trainer.config import Plan
from trainer.progress import say
from trainer.publish import release_folders

# The job remembers so many announcements over a restart, and goes back through them when a release does not load.
ANNOUNCED = 5
_GOING = ".going-"


def prune(plan: Plan, told: Told) -> list[str]:
    """Remove what nobody will ask for again, with its parameters and curves; returns the versions."""
    for left in plan.releases.glob(f"{_GOING}*"):  # of a cycle that was killed amid this
        shutil.rmtree(left)
    folders = {folder.name: folder for folder in release_folders(plan.releases)}
    full, _ = told.standing
    kept = {*sorted(folders)[-plan.keep_releases :], *(message.version for message in told.releases[-ANNOUNCED:])}
    if full is not None and full.version in folders:
        kept |= {full.version, parent_of(full) or ""}
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
