"""What a fit minimises: cross-entropy of the item that came next, over all live items or a sample of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.batches import Batch
from trainer.network import Network

# Up to here a step scores the whole catalogue; beyond, its cost is bounded by a sample of this many items.
FULL_UP_TO, SAMPLED = 20_000, 4_096


class Objective(nn.Module):
    """Network and loss in one module, so that several processes can add up its gradients."""

    def __init__(self, network: Network, live: Tensor, id_dropout: float) -> None:
        """live: bool[V+1], items that can be recommended now; only they stand against the item that came."""
        super().__init__()
        self.network = network
        self.id_dropout = id_dropout
        self.register_buffer("live", live, persistent=False)
        self.live: Tensor
        self._all_live = bool(live[1:].all())

    def forward(self, batch: Batch) -> Tensor:
        """Sum of the cross-entropies over the targets of the batch, a scalar."""
        network = self.network
        table = network.table(self.id_dropout)
        user = network(table, batch.item_index, batch.action, batch.gap, batch.ages(), batch.counters)
        wanted = batch.target > 0
        user_MD, target_M = user[wanted], batch.target[wanted]
        if self.live.numel() - 1 <= FULL_UP_TO:
            logits = network.scores(user_MD, table)[:, 1:].float()
            if not self._all_live:
                # An item that left since still teaches what came before it; as a wrong answer it does not count.
                logits = logits.masked_fill(~self._stands(target_M)[1:], float("-inf"))
            return F.cross_entropy(logits, target_M - 1, reduction="sum")
        return self._sampled(user_MD, target_M, table)

    def _stands(self, target_M: Tensor) -> Tensor:
        """bool[V+1]: live items, and what is to be predicted in this batch."""
        stands = self.live.clone()
        stands[target_M] = True
        return stands

    def _sampled(self, user_MD: Tensor, target_M: Tensor, table: Tensor) -> Tensor:
        """Cross-entropy over the batch's targets and up to SAMPLED live items drawn evenly.

        A drawn one stands for the items like it: its score is raised by the log of one over its chance to be drawn,
        so that the sum over the sample estimates the sum over the catalogue.
        """
        network = self.network
        live = torch.nonzero(self.live[1:]).squeeze(1) + 1
        drawn = live[torch.randint(len(live), (SAMPLED,), device=live.device)]
        of_batch, place_M = torch.unique(target_M, return_inverse=True)
        drawn = torch.unique(drawn[~torch.isin(drawn, of_batch)])
        sample = torch.cat((of_batch, drawn))
        stands_for = torch.zeros(len(sample), device=live.device)
        stands_for[len(of_batch) :] = -math.log(-math.expm1(SAMPLED * math.log1p(-1 / max(len(live), 2))))
        logits = F.linear(user_MD, table[sample], (network.popularity + network.recent())[sample]).float()
        return F.cross_entropy(logits + stands_for, place_M, reduction="sum")
