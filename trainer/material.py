"""What a cycle works on: served release, item index, ordered events, cuts in time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ModelRefused
from schemas.features import Vocabulary
from trainer.collect import stored_clicks, stored_items
from trainer.config import Plan
from trainer.judge import Contender
from trainer.progress import say
from trainer.publish import Release
from trainer.sequences import (
    HELD_LEAST,
    HELD_SHARE,
    HELD_SHARE_OF_NEW,
    Histories,
    Slices,
    histories,
    index_order,
    slices,
)


@dataclass(frozen=True)
class Material:
    """The material of one cycle; `settled` are the events that may be learned from."""

    parent: Release | None
    checkpoint: Path | None  # of the parent, when it is there to go on from
    learned_until: int | None  # ms, what the checkpoint has learned
    vocabulary: Vocabulary
    events: Histories
    settled: Histories
    cut: Slices

    @property
    def parent_version(self) -> str | None:
        """Version of the served release."""
        return self.parent.manifest.version if self.parent else None

    @property
    def serving(self) -> Contender | None:
        """The served model, for the judge."""
        if self.parent is None:
            return None
        return Contender(self.parent.folder, self.parent.manifest.item_count)

    def trained_on(self) -> dict[str, Any]:
        """What the manifest says of the learned events; held-back ones come after until_ms."""
        return {
            "events": len(self.settled),
            "users": self.settled.user_count,
            "items": self.vocabulary.size,
            "from_ms": int(self.settled.event_time.min()),
            "until_ms": self.cut.judge_from,
        }


def gather(plan: Plan, parent: Release | None) -> Material | None:
    """Read what was collected; None, and a line, when too little came since the served model.

    Raises ModelRefused when there are too few events for a first model.
    """
    checkpoint, learned_until = None, None
    if parent is not None:
        checkpoint = plan.checkpoint(parent.manifest.version)
        if checkpoint.is_file():
            learned_until = int(parent.manifest.trained_on["until_ms"])
        else:
            say(f"no checkpoint of {parent.manifest.version} at {checkpoint}: fitting from nothing")
            checkpoint = None
    clicks, catalogue = stored_clicks(plan.data), stored_items(plan.data)
    known = parent.item_ids() if parent else []
    vocabulary = Vocabulary(index_order(known, catalogue["item_id"], clicks["item_id"]))
    events = histories(clicks, vocabulary)
    cut = slices(events.event_time, learned_until)
    if cut is None:
        _say_too_few(events, learned_until)
        return None
    say(
        f"{len(events)} events of {events.user_count} users on {vocabulary.size} items"
        + (f", going on from {parent.manifest.version}" if parent and checkpoint else "")
    )
    settled = events.before(cut.judge_from)
    return Material(parent, checkpoint, learned_until, vocabulary, events, settled, cut)


def _say_too_few(events: Histories, learned_until: int | None) -> None:
    if learned_until is None:
        raise ModelRefused(
            f"{len(events)} events are too few for a first model that can be judged",
            f"collect at least {int(HELD_LEAST / HELD_SHARE)}",
        )
    new = int((events.event_time >= learned_until).sum())
    needed = int(HELD_LEAST / HELD_SHARE_OF_NEW)
    say(f"nothing to do: {new} events since the served model, {needed} can be judged on")
