"""The model: a gated transformer that reads a user's last events and scores every item as the next one.

Shape suffixes: B users, L events of history, Q query places (L, or 1 for the newest), D width, H heads,
F feed-forward width, V items, R popularity windows; item index 0 = padding.

    events ─▶ item + action + gap ─▶ gated blocks ─▶ + counters ─▶ user vector · item vectors + popularity
    item vector = own vector + projected text                       └ Scorer: masks, exact top-K
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schemas.click import ACTIONS
from schemas.features import COUNTER_NAMES, GAP_BUCKETS, Inputs
from trainer.recipe import NetworkConfig

# A projected text starts this long beside own vectors of length about 1: it remarks, they tell.
TEXT_START = 0.3


def tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Model inputs as tensors over the same memory."""
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


class Attention(nn.Module):
    """Causal attention that knows place by a learned bias over distance, and time by one over age."""

    def __init__(self, config: NetworkConfig, timed: bool) -> None:
        super().__init__()
        self.heads = config.heads
        inner = config.heads * config.one_head
        self.query = nn.Linear(config.width, inner)
        self.key_value = nn.Linear(config.width, 2 * inner)
        self.output = nn.Linear(inner, config.width)
        # distance_bias[h, n]: what head h adds for an event n steps back.
        self.distance_bias = nn.Parameter(torch.zeros(config.heads, config.history))
        # age_bias[b, h]: what head h adds for an event whose age at the query is in bucket b.
        self.age_bias = nn.Parameter(torch.zeros(GAP_BUCKETS, config.heads)) if timed else None
        steps = torch.arange(config.history)
        distance = steps[:, None] - steps[None, :]
        self.register_buffer("distance_LL", distance.clamp(min=0), persistent=False)
        self.register_buffer("causal_LL", distance >= 0, persistent=False)
        self.register_buffer("itself_LL", distance == 0, persistent=False)
        self.distance_LL: Tensor
        self.causal_LL: Tensor
        self.itself_LL: Tensor

    def forward(self, x_BLD: Tensor, real_BL: Tensor, age_BQL: Tensor | None) -> Tensor:
        """Attend from the last Q places, Q given by age_BQL, else from all: [B, Q, D]."""
        places = x_BLD.shape[1] if age_BQL is None else age_BQL.shape[1]
        queries = slice(x_BLD.shape[1] - places, None)
        query = self._split(self.query(x_BLD[:, queries]))
        key, value = (self._split(part) for part in self.key_value(x_BLD).chunk(2, dim=-1))
        scores = query @ key.transpose(-1, -2) * (key.shape[-1] ** -0.5)
        scores = scores + self.distance_bias[:, self.distance_LL[queries]]
        if self.age_bias is not None and age_BQL is not None:
            scores = scores + self._by_age(self.age_bias, age_BQL)
        # Padding sees itself, so that no row of the softmax is empty (which would be NaN).
        allowed = self.causal_LL[queries] & (real_BL[:, None, :] | self.itself_LL[queries])
        scores = scores.masked_fill(~allowed[:, None], float("-inf"))
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        attended: Tensor = self.output(mixed)
        return attended

    def _by_age(self, bias: Tensor, age_BQL: Tensor) -> Tensor:
        """[B, H, Q, L]."""
        if age_BQL.shape[1] == 1:
            return bias[age_BQL].permute(0, 3, 1, 2)
        # The gradient of an index adds up millions of terms into a few places, one after another: on a GPU the
        # product with a one-hot matrix is a hundred times faster.
        one_hot = age_BQL[..., None] == torch.arange(GAP_BUCKETS, device=age_BQL.device)
        return (one_hot.to(bias.dtype) @ bias).permute(0, 3, 1, 2)

    def _split(self, x_BLE: Tensor) -> Tensor:
        users, events, inner = x_BLE.shape
        return x_BLE.view(users, events, self.heads, inner // self.heads).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm block: attention, then a gated two-layer network; a gate decides how much of each is added."""

    def __init__(self, config: NetworkConfig, timed: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config, timed)
        self.attention_gate = nn.Linear(config.width, config.width)
        self.feed_norm = nn.LayerNorm(config.width)
        self.feed_in = nn.Linear(config.width, 2 * config.feed_width)
        self.feed_out = nn.Linear(config.feed_width, config.width)
        self.feed_gate = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, real_BL: Tensor, age_BQL: Tensor | None) -> Tensor:
        """[B, L, D] → [B, Q, D], Q as in Attention."""
        normed = self.attention_norm(x_BLD)
        attended = self.attention(normed, real_BL, age_BQL)
        places = slice(x_BLD.shape[1] - attended.shape[1], None)
        x_BQD = x_BLD[:, places] + self.dropout(torch.sigmoid(self.attention_gate(normed[:, places])) * attended)
        normed = self.feed_norm(x_BQD)
        gate, value = self.feed_in(normed).chunk(2, dim=-1)
        fed = self.feed_out(self.dropout(F.silu(gate) * value))
        result: Tensor = x_BQD + self.dropout(torch.sigmoid(self.feed_gate(normed)) * fed)
        return result


class Network(nn.Module):
    """History → user vectors; the item table is shared between input and output.

    Not parameters, but set from outside: the text vectors of the items (`set_text`), and how popular each item
    is of late (`set_recent`).
    """

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
        last = config.blocks - 1
        if config.shared:
            one = Block(config, timed=True)
            self.blocks = nn.ModuleList(one for _ in range(config.blocks))
        else:
            # Only the newest place is asked for in the last block: there an age per event is all that time needs.
            self.blocks = nn.ModuleList(Block(config, timed=depth == last) for depth in range(config.blocks))
        self.counters = nn.Linear(len(COUNTER_NAMES), config.width)
        self.final_norm = nn.LayerNorm(config.width)
        self.popularity = nn.Parameter(torch.zeros(config.items + 1))
        # What a user makes of recent popularity: one weight a window.
        self.blend = nn.Linear(config.width, config.recent)
        for begins_silent in (self.counters, self.blend):
            nn.init.zeros_(begins_silent.weight)
            nn.init.zeros_(begins_silent.bias)
        self.register_buffer("recent_VR", torch.zeros(config.items + 1, config.recent), persistent=False)
        self.recent_VR: Tensor
        self.text: nn.Linear | None = None
        if config.text:
            self.text = nn.Linear(config.text, config.width, bias=False)
            nn.init.normal_(self.text.weight, std=TEXT_START * config.width**-0.5)
        self.register_buffer("text_VT", torch.zeros(config.items + 1, config.text), persistent=False)
        self.text_VT: Tensor

    def set_popularity(self, counts: Tensor) -> None:
        """Start the popularity bias from log counts; counts: [V+1], any real ≥ 0."""
        with torch.no_grad():
            self.popularity.copy_(log_share(counts))

    def set_recent(self, recent_VR: Tensor) -> None:
        """How popular each item is in each recent window: float32[V+1, R] as made by `log_share`."""
        self.recent_VR.copy_(recent_VR)

    def set_text(self, text_VT: Tensor) -> None:
        """Text vectors float32[V+1, T] of length 1; a row of zeros is an item without text."""
        self.text_VT.copy_(text_VT)

    def table(self, id_dropout: float = 0.0) -> Tensor:
        """Item vectors [V+1, D]. id_dropout: share of the items with text that must do without their own vector.

        What is learned so serves items that were never trained on: they have a text and nothing else.
        """
        own: Tensor = self.item.weight
        if self.text is None:
            return own
        if id_dropout > 0.0:
            has_text = self.text_VT.any(dim=1)
            dropped = has_text & (torch.rand(len(own), device=own.device) < id_dropout)
            own = own.masked_fill(dropped[:, None], 0.0)
        told: Tensor = self.text(self.text_VT)
        return own + told

    def forward(
        self, table: Tensor, item_index: Tensor, action: Tensor, gap: Tensor, age: Tensor, counters: Tensor
    ) -> Tensor:
        """User vectors [B, Q, D] after each of the last Q events.

        table: [V+1, D] of `table()`. item_index, action, gap: int64[B, L] as made by
        `schemas.features.history_inputs`. age: int64[B, Q, L], bucket of the time from each event up to query
        place q. counters: float32[B, Q, C] as they stood at the query places.
        """
        # An event on an item without an index is still an event: only its action 0 says padding.
        real_BL = action > 0
        x_BLD = self.dropout(F.embedding(item_index, table) + self.action(action) + self.gap(gap))
        for depth, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, real_BL, age if depth == len(self.blocks) - 1 else None)
        user: Tensor = self.final_norm(x_BLD + self.counters(counters))
        return user

    def scores(self, user: Tensor, table: Tensor) -> Tensor:
        """Scores [..., V+1] of all items for user vectors [..., D]; column 0 means nothing."""
        return F.linear(self.asking(user), self.ranked(table), self.popularity)

    def asking(self, user: Tensor) -> Tensor:
        """User vectors with their blend: [..., D + R]."""
        return torch.cat((user, self.blend(user)), dim=-1)

    def ranked(self, table: Tensor) -> Tensor:
        """Item vectors with their recent popularity, [V+1, D + R]: what `asking` is multiplied with."""
        return torch.cat((table, self.recent_VR.to(table.dtype)), dim=1)


def log_share(counts: Tensor) -> Tensor:
    """Log of each item's share of the counts [V+1], 0 for an average item."""
    share = (counts.float() + 1.0) / (counts.sum() + len(counts))
    return (share * len(counts)).log()


class Scorer(nn.Module):
    """The graph that is served: history → the best K items a user may be shown."""

    def __init__(self, network: Network, top_k: int) -> None:
        super().__init__()
        self.network = network
        self.top_k = top_k
        with torch.no_grad():
            table = network.table()
            self.register_buffer("table_VD", table.clone())
            self.register_buffer("ranked_VE", network.ranked(table))
        self.table_VD: Tensor
        self.ranked_VE: Tensor

    def forward(
        self, item_index: Tensor, action: Tensor, gap: Tensor, age: Tensor, counters: Tensor, available: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Exact top-K: top_index int64[B, K] (1-based), top_score float32[B, K], best first.

        age: int64[B, L]. counters: float32[B, C]. available: bool[V+1]. Index 0, items in the row's own history
        and unavailable items are masked to -inf; where fewer than K items remain, the row ends in -inf.
        """
        user_BD = self.network(self.table_VD, item_index, action, gap, age[:, None], counters[:, None])[:, 0]
        # F.linear reads the table as it lies; `user @ table.T` would copy it into an ONNX graph.
        score_BV = F.linear(self.network.asking(user_BD), self.ranked_VE, self.network.popularity)
        score_BV = score_BV.masked_fill(~available, float("-inf"))
        # Index 0 (padding, unknown) is among what is scattered as soon as a row is not full …
        score_BV = score_BV.scatter(1, item_index, float("-inf"))
        # … and is masked for full rows here.
        score_BV = F.pad(score_BV[:, 1:], (1, 0), value=float("-inf"))
        top = score_BV.topk(self.top_k, dim=1, sorted=True)
        return top.indices, top.values
