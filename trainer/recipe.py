"""What is trained and how, as plain numbers; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.user_state import HISTORY

WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class NetworkConfig:
    """The network's sizes. `history`: events of a user that are read. `text`: width of text vectors, 0 = none.

    `feed`, `head_width` 0: derived from width. `shared`: all blocks are one and the same set of parameters.
    """

    items: int
    width: int = 64
    blocks: int = 2
    heads: int = 4
    feed: int = 0
    head_width: int = 0
    dropout: float = 0.2
    history: int = HISTORY
    text: int = 0
    recent: int = 3
    shared: bool = False

    @property
    def feed_width(self) -> int:
        """Hidden width of the feed-forward layers."""
        return self.feed or 2 * self.width

    @property
    def one_head(self) -> int:
        """Width of one head."""
        return self.head_width or self.width // self.heads


@dataclass(frozen=True)
class Recipe:
    """How to learn.

    passes: at most so many. rate: highest learning rate. per_step: full windows of one step, at most. steps: of one
    pass, about; where large steps cost no more than small ones, they still must not be few. patience:
    passes without a better result before it ends. average: share of the averaged weights that one step leaves; 0 = no
    averaging. id_dropout: see Network.table. newest_only: a user's newest window alone, and nothing beside the
    network, as published models do.
    """

    passes: int
    rate: float
    per_step: int
    steps: int
    patience: int = 1
    average: float = 0.0
    id_dropout: float = 0.0
    weight_decay: float = WEIGHT_DECAY
    constant: bool = False
    newest_only: bool = False
