"""Our model, and the reference network, as arms: trained by the code that a cycle uses.

model             learned once, as `frozen`; the name where no time passes
model-no-text     the same without the text of the items
text-only         items are their text alone
sasrec            a published reference (see sasrec.py)
frozen            learned before the first period, then left alone
fine-tune         goes on from itself with each period's events alone
fine-tune+replay  the same with older events mixed in, as a cycle does
full-retrain      learned anew from everything, each period
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import ConfigError
from trainer.evaluate.sasrec import Sasrec
from trainer.fit import Check, score_all
from trainer.network import Network
from trainer.processes import Processes
from trainer.recipe import NetworkConfig, Recipe
from trainer.sequences import Histories, Ints
from trainer.start import first_network
from trainer.tune import Course, tune

NETWORKS = (
    "model",
    "model-no-text",
    "text-only",
    "sasrec",
    "frozen",
    "fine-tune",
    "fine-tune+replay",
    "full-retrain",
)
ONCE = ("model", "model-no-text", "text-only", "sasrec", "frozen")
# The reference as published: no averaging of weights, no text, dropout and rate of its own.
SASREC_DROPOUT, SASREC_RATE = 0.2, 1e-3


@dataclass(frozen=True)
class Training:
    """What all network arms of an evaluation share. timed: the data lie in time, so the newest events settle last."""

    sizes: NetworkConfig
    first: Recipe
    later: Recipe
    text: Tensor  # float32[V+1, T], T = 0 without text
    timed: bool


class NetworkArm:
    """One network and what is done with it at each period."""

    def __init__(self, name: str, seed: int, training: Training) -> None:
        """name: one of NETWORKS. Raises ConfigError when it asks for text and there is none."""
        if name == "text-only" and not training.text.shape[1]:
            raise ConfigError("text-only needs items with a text", "give titles, or leave the arm out")
        self.name = name
        self._seed = seed
        self._training = training
        self.network: Network | None = None
        self._table: Tensor | None = None
        self._learned_until: int | None = None
        on_gpu = torch.cuda.is_available()
        self._alone = Processes(0, 1, torch.device("cuda" if on_gpu else "cpu"))

    def learn(self, known: Histories, check: Check | None) -> None:
        """As the arm's name says; see Arm.learn."""
        going_on = self.network is not None and self.name.startswith("fine-tune")
        if self.network is not None and self.name in ONCE:
            return
        network = self.network if going_on else self._begin(known)
        assert network is not None
        recipe = self._training.later if going_on else self._recipe()
        settles = check is not None and self._training.timed and self.name != "sasrec"
        everything = known if check is None else check.histories
        course = Course(known, check, None, check.begins_ms if check is not None and settles else None)
        if going_on:
            course = Course(everything, None, self._learned_until, None)
            if self.name == "fine-tune":
                course = replace(course, older_per_new=0.0)
        live = torch.ones(network.config.items + 1, dtype=torch.bool)
        tune(network, course, recipe, live, self._seed, self._alone)
        self.network = network.eval()
        self._learned_until = int(everything.event_time.max(initial=0)) + 1
        with torch.no_grad():
            self._table = network.table()

    def scores(self, histories: Histories, places: Ints) -> NDArray[np.float32]:
        """See Arm.scores."""
        assert self.network is not None
        assert self._table is not None
        scores: NDArray[np.float32] = score_all(self.network, self._table, histories, places - 1).cpu().numpy()
        scores[:, 0] = -np.inf
        return scores

    def _recipe(self) -> Recipe:
        first = self._training.first
        if self.name == "sasrec":
            return replace(first, rate=SASREC_RATE, average=0.0, id_dropout=0.0, newest_only=True)
        if self.name == "text-only":
            return replace(first, id_dropout=1.0)
        return first

    def _begin(self, known: Histories) -> Network:
        text, sizes = self._training.text, self._training.sizes
        if self.name == "sasrec":
            torch.manual_seed(self._seed)
            return Sasrec(replace(sizes, dropout=SASREC_DROPOUT, text=0))
        if self.name == "model-no-text":
            return first_network(replace(sizes, text=0), known, self._seed)
        network = first_network(sizes, known, self._seed)
        network.set_text(text)
        if self.name == "text-only":
            with torch.no_grad():
                network.item.weight[text.any(dim=1)] = 0.0
        return network
