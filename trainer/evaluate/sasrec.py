"""A published reference, to tell the model's merit from the harness's: SASRec with full cross-entropy.

Kang and McAuley, "Self-Attentive Sequential Recommendation" (2018), trained with cross-entropy over the whole
catalogue as in Klenitskiy and Vasilev, "Turning Dross Into Gold Loss" (RecSys 2023): item and position embeddings,
two blocks of causal attention and a ReLU network, tied output, no bias, a user's newest window alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.network import Network
from trainer.recipe import NetworkConfig

INITIAL_SPREAD = 0.02


class Sasrec(Network):
    """SASRec behind the interface of Network, so that it is trained and asked by the same code."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.place = nn.Embedding(config.history, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=INITIAL_SPREAD)
        with torch.no_grad():
            self.item.weight[0] = 0.0

    def forward(
        self,
        table: Tensor,
        item_index: Tensor,
        action: Tensor,
        gap: Tensor,  # noqa: ARG002 - the interface of Network
        age: Tensor,
        counters: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """User vectors [B, Q, D]; only the items and their places count."""
        real_BL = action > 0
        x_BLD = F.embedding(item_index, table) * self.config.width**0.5 + self.place.weight[-item_index.shape[1] :]
        x_BLD = self.dropout(x_BLD) * real_BL[..., None]
        for block in self.blocks:
            x_BLD = block(x_BLD) * real_BL[..., None]
        user: Tensor = self.final_norm(x_BLD)[:, -age.shape[1] :]
        return user

    def scores(self, user: Tensor, table: Tensor) -> Tensor:
        """Plain products."""
        return F.linear(user, table)


class _Block(nn.Module):
    """Attention and a two-layer network, each normed before and added to its input."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = nn.MultiheadAttention(config.width, config.heads, config.dropout, batch_first=True)
        self.feed_norm = nn.LayerNorm(config.width)
        self.feed = nn.Sequential(
            nn.Linear(config.width, config.width),
            nn.Dropout(config.dropout),
            nn.ReLU(),
            nn.Linear(config.width, config.width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x_BLD: Tensor) -> Tensor:
        later = torch.ones(x_BLD.shape[1], x_BLD.shape[1], dtype=torch.bool, device=x_BLD.device).triu(1)
        query = self.attention_norm(x_BLD)
        attended, _ = self.attention(query, x_BLD, x_BLD, attn_mask=later, need_weights=False)
        x_BLD = query + attended
        normed = self.feed_norm(x_BLD)
        fed: Tensor = normed + self.feed(normed)
        return fed
