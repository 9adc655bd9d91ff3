"""The model: a transformer that reads a user's last events and scores every item as the next one.

Shape suffixes: B users, L events of history, D width, H heads, V items; item index 0 = padding.

    events ─▶ item + action + gap embeddings ─▶ blocks ─▶ user vector · item vectors + popularity
                                                           └ Scorer: masks, exact top-K
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.click import ACTIONS
from schemas.features import GAP_BUCKETS, Inputs
from schemas.user_state import HISTORY


def tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Model inputs as tensors over the same memory."""
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


@dataclass(frozen=True)
class NetworkConfig:
    """The network's sizes; `history` is the length of a user's ring."""

    items: int
    width: int = 64
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.2
    history: int = HISTORY


class Attention(nn.Module):
    """Causal attention whose only sense of place is a learned bias by relative position."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.output = nn.Linear(config.width, config.width)
        # distance_bias[h, n]: what head h adds for an event n steps back.
        self.distance_bias = nn.Parameter(torch.zeros(config.heads, config.history))
        steps = torch.arange(config.history)
        distance = steps[:, None] - steps[None, :]
        self.register_buffer("distance_LL", distance.clamp(min=0), persistent=False)
        self.register_buffer("causal_LL", distance >= 0, persistent=False)
        self.register_buffer("itself_LL", distance == 0, persistent=False)
        self.distance_LL: Tensor
        self.causal_LL: Tensor
        self.itself_LL: Tensor

    def forward(self, x_BLD: Tensor, real_BL: Tensor, last_only: bool) -> Tensor:
        """Attend from every place, or with last_only from the last: [B, L or 1, D]."""
        queries = slice(-1, None) if last_only else slice(None)
        query = self._split(self.query(x_BLD[:, queries]))
        key, value = (self._split(part) for part in self.key_value(x_BLD).chunk(2, dim=-1))
        scores = query @ key.transpose(-1, -2) * (key.shape[-1] ** -0.5)
        scores = scores + self.distance_bias[:, self.distance_LL[queries]]
        # Padding sees itself, so that no row of the softmax is empty (which would be NaN).
        allowed = self.causal_LL[queries] & (real_BL[:, None, :] | self.itself_LL[queries])
        scores = scores.masked_fill(~allowed[:, None], float("-inf"))
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        attended: Tensor = self.output(mixed)
        return attended

    def _split(self, x_BLD: Tensor) -> Tensor:
        users, events, width = x_BLD.shape
        return x_BLD.view(users, events, self.heads, width // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer network, each added to its input."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.feed_norm = nn.LayerNorm(config.width)
        self.feed = nn.Sequential(
            nn.Linear(config.width, 2 * config.width),
            nn.ReLU(),
            nn.Linear(2 * config.width, config.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, real_BL: Tensor, last_only: bool = False) -> Tensor:
        """[B, L, D] → [B, L, D], or [B, 1, D] with last_only."""
        attended = self.attention(self.attention_norm(x_BLD), real_BL, last_only)
        x_BLD = (x_BLD[:, -1:] if last_only else x_BLD) + self.dropout(attended)
        fed: Tensor = self.dropout(self.feed(self.feed_norm(x_BLD)))
        return x_BLD + fed


class Network(nn.Module):
    """History → user vectors; the item table is shared between input and output."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.item = nn.Embedding(config.items + 1, config.width, padding_idx=0)
        self.action = nn.Embedding(len(ACTIONS) + 1, config.width, padding_idx=0)
        self.gap = nn.Embedding(GAP_BUCKETS, config.width)
        # Items of length about 1; what was done and when begins as a small remark to which item.
        nn.init.normal_(self.item.weight, std=config.width**-0.5)
        for table in (self.action, self.gap):
            nn.init.normal_(table.weight, std=0.1 * config.width**-0.5)
        with torch.no_grad():
            self.item.weight[0] = 0.0
            self.action.weight[0] = 0.0
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.final_norm = nn.LayerNorm(config.width)
        self.popularity = nn.Parameter(torch.zeros(config.items + 1))

    def set_popularity(self, counts: Tensor) -> None:
        """Start the popularity bias from log counts; counts: [V+1], any real ≥ 0."""
        with torch.no_grad():
            share = (counts.float() + 1.0) / (counts.sum() + len(counts))
            self.popularity.copy_((share * len(counts)).log())

    def forward(self, item_index: Tensor, action: Tensor, gap: Tensor, last_only: bool = False) -> Tensor:
        """User vectors [B, L, D] after each event; with last_only [B, D] after the newest.

        item_index, action, gap: int64[B, L] as made by `schemas.features.history_inputs`.
        """
        # An event on an item without an index is still an event: only its action 0 says padding.
        real_BL = action > 0
        x_BLD = self.dropout(self.item(item_index) + self.action(action) + self.gap(gap))
        for depth, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, real_BL, last_only and depth == len(self.blocks) - 1)
        user: Tensor = self.final_norm(x_BLD)
        return user[:, -1] if last_only else user

    def scores(self, user: Tensor) -> Tensor:
        """Scores [..., V+1] of all items for user vectors [..., D]; column 0 means nothing."""
        # F.linear reads the table as it lies; `user @ table.T` would copy it into an ONNX graph.
        return F.linear(user, self.item.weight, self.popularity)


class Scorer(nn.Module):
    """The graph that is served: history → the best K items a user may be shown."""

    def __init__(self, network: Network, top_k: int) -> None:
        super().__init__()
        self.network = network
        self.top_k = top_k

    def forward(self, item_index: Tensor, action: Tensor, gap: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
        """Exact top-K: top_index int64[B, K] (1-based), top_score float32[B, K], best first.

        available: bool[V+1]. Index 0, items in the row's own history and unavailable items are
        masked to -inf; where fewer than K items remain, the row ends in scores of -inf.
        """
        user_BD = self.network(item_index, action, gap, last_only=True)
        score_BV = self.network.scores(user_BD)
        score_BV = score_BV.masked_fill(~available, float("-inf"))
        # Index 0 (padding, unknown) is among what is scattered as soon as a row is not full …
        score_BV = score_BV.scatter(1, item_index, float("-inf"))
        # … and is masked for full rows here.
        score_BV = F.pad(score_BV[:, 1:], (1, 0), value=float("-inf"))
        top = score_BV.topk(self.top_k, dim=1, sorted=True)
        return top.indices, top.values
