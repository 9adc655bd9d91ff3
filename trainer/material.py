"""What a cycle works on: served release, items, ordered events, cuts in time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.errors import ModelRefused
from schemas.features import Vocabulary
from trainer.catalogue import Catalogue, catalogue_of
from trainer.collect import stored_catalogue, stored_clicks
from trainer.config import Plan
from trainer.judge import Contender
from trainer.progress import say
from trainer.publish import Release
from trainer.sequences import HELD_LEAST, HELD_SHARE, HELD_SHARE_OF_NEW, Histories, Slices, histories, slices


@dataclass(frozen=True)
class Material:
    """The material of one cycle; `settled` are the events that may be learned from."""

    parent: Release | None
    checkpoint: Path | None  # of the parent, when it is there to go on from
    catalogue: Catalogue
    events: Histories
    settled: Histories
    cut: Slices
    serving: Contender | None  # the served model, for the judge

    @property
    def parent_version(self) -> str | None:
        """Version of the served release."""
        return self.parent.manifest.version if self.parent else None

    @property
    def item_ids(self) -> list[str]:
        """Items in index order: the first has index 1."""
        return self.catalogue.vocabulary.ids

    @property
    def titles(self) -> list[str]:
        """Titles in index order, "" for an item without one."""
        return self.catalogue.titles

    @property
    def live(self) -> NDArray[np.bool_]:
        """bool[V+1]: what can be recommended now, and so stands against the item that was chosen."""
        return self.catalogue.live

    def candidate(self, folder: Path) -> Contender:
        """A model made of this material, for the judge."""
        available = np.ones(len(self.item_ids) + 1, np.bool_)
        return Contender(folder, self.events, available, self.cut.judge_from)

    def trained_on(self) -> dict[str, Any]:
        """What the manifest says of the learned events; held-back ones come after until_ms."""
        return {
            "events": len(self.settled),
            "users": self.settled.user_count,
            "items": len(self.item_ids),
            "from_ms": int(self.settled.event_time.min()),
            "until_ms": self.cut.judge_from,
        }


def gather(plan: Plan, parent: Release | None) -> Material | None:
    """Read what was collected; None, and a line, when too little came since the served model.

    Raises ModelRefused when there are too few events for a first model, ContractError when a file is damaged.
    """
    clicks, stored = stored_clicks(plan.data), stored_catalogue(plan.data)
    served = parent.item_ids() if parent else []
    catalogue = catalogue_of(served, stored, clicks, plan)
    events = histories(clicks, catalogue.vocabulary)
    # The served model is judged beside the new one, on events that neither has learned: also where its checkpoint is
    # lost and the new one starts from nothing.
    learned_until = parent.until_ms if parent else None
    cut = slices(events.event_time, learned_until)
    if cut is None:
        _say_too_few(events, learned_until)
        return None
    left = len(set(served).difference(catalogue.vocabulary.ids))
    say(
        f"{len(events)} events of {events.user_count} users on {catalogue.vocabulary.size} items"
        + (f"; {left} of the {len(served)} served ones have left" if left else "")
    )
    return Material(
        parent=parent,
        checkpoint=_checkpoint(plan, parent) if parent else None,
        catalogue=catalogue,
        events=events,
        settled=events.before(cut.judge_from),
        cut=cut,
        serving=_serving(parent, catalogue, clicks) if parent else None,
    )


def _checkpoint(plan: Plan, parent: Release) -> Path | None:
    file = plan.checkpoint(parent.manifest.version)
    if file.is_file():
        return file
    say(f"no checkpoint of {parent.manifest.version} at {file}: fitting from nothing")
    return None


def _serving(parent: Release, catalogue: Catalogue, clicks: pl.DataFrame) -> Contender:
    """The served model with the same events as it sees them: by its own items; those that left are not its fault."""
    item_ids = parent.item_ids()
    alive = set(catalogue.vocabulary.ids)
    available = np.array([False, *(item in alive for item in item_ids)], np.bool_)
    return Contender(parent.folder, histories(clicks, Vocabulary(item_ids)), available, parent.until_ms)


def _say_too_few(events: Histories, learned_until: int | None) -> None:
    if learned_until is None:
        raise ModelRefused(
            f"{len(events)} events are too few for a first model that can be judged",
            f"collect at least {int(HELD_LEAST / HELD_SHARE)}",
        )
    new = int((events.event_time >= learned_until).sum())
    needed = int(HELD_LEAST / HELD_SHARE_OF_NEW)
    say(f"nothing to do: {new} events since the served model, {needed} can be judged on")
