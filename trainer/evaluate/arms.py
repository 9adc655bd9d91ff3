"""What competes in an evaluation: the interface of an arm, and how arms enter the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.fit import Check
from trainer.sequences import Histories, Ints


class Arm(Protocol):
    """One way to foresee the next item. `name` says which, its parameters included once they are chosen."""

    name: str

    def learn(self, known: Histories, check: Check | None) -> None:
        """Learn what is known at a moment; called again for each period of a prequential run."""

    def scores(self, histories: Histories, places: Ints) -> NDArray[np.float32]:
        """Scores float32[B, V+1] of all items for the events at these places int64[B]; column 0 means nothing.

        Only what happened before each place may be looked at. What an arm cannot score gets -inf.
        The caller masks items in the returned array.
        """


@dataclass(frozen=True)
class Contestant:
    """A row of the table: one arm, made anew for each seed.

    makers: of one arm each, given a seed. Of several, the best one on a sample of the test events themselves
    competes: in favour of a baseline, never for an arm of ours.
    seeded: whether a seed changes anything; if not, one run serves for all seeds.
    """

    name: str
    makers: tuple[Callable[[int], Arm], ...]
    seeded: bool = True
