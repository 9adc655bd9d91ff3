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
from trainer.memory import Memory
from trainer.recipe import NetworkConfig

# A projected text starts this long beside own vectors of length about 1: it remarks, they tell.
TEXT_START = 0.3
# Newest items that remember, the n-th newest 1/n as strongly; and their weights: of the very newest, of the others.
NEWEST, MEMORIES = 8, 2


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
        length = x_BLD.shape[1]
        places = length if age_BQL is None else age_BQL.shape[1]
        queries, keys = slice(length - places, length), slice(0, length)
        query = self._split(self.query(x_BLD[:, queries]))
        key, value = (self._split(part) for part in self.key_value(x_BLD).chunk(2, dim=-1))
        scores = query @ key.transpose(-1, -2) * (key.shape[-1] ** -0.5)
        scores = scores + self.distance_bias[:, self.distance_LL[queries, keys]]
        if self.age_bias is not None and age_BQL is not None:
            scores = scores + self._by_age(self.age_bias, age_BQL)
        # Padding sees itself, so that no row of the softmax is empty (which would be NaN).
        allowed = self.causal_LL[queries, keys] & (real_BL[:, None, :] | self.itself_LL[queries, keys])
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

    Not parameters, but set from outside: the text vectors of the items (`set_text`), how popular each item is of late
    (`set_recent`), which items came near which (`set_memory`).
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
        nn.init.zeros_(self.counters.weight)
        nn.init.zeros_(self.counters.bias)
        # Weights of recent popularity, one a window, and of memory: of the newest item, and of those before it; how
        # sharply the network's own scores tell items apart beside memory. No parameters of a fit, but of `blend.py`.
        self.register_buffer("blend", torch.zeros(config.recent + MEMORIES))
        self.register_buffer("sharpness", torch.ones(()))
        self.register_buffer("recent_VR", torch.zeros(config.items + 1, config.recent), persistent=False)
        self.register_buffer("neighbour_VM", torch.zeros(config.items + 1, 1, dtype=torch.int64), persistent=False)
        self.register_buffer("strength_VM", torch.zeros(config.items + 1, 1), persistent=False)
        self.blend: Tensor
        self.sharpness: Tensor
        self.recent_VR: Tensor
        self.neighbour_VM: Tensor
        self.strength_VM: Tensor
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

    def set_memory(self, memory: Memory) -> None:
        """Which items came near which: see memory.py."""
        device = self.popularity.device
        self.neighbour_VM, self.strength_VM = memory.neighbour.to(device), memory.strength.to(device)

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
        """Scores [..., V+1] of all items for user vectors [..., D], to learn by; column 0 means nothing."""
        # F.linear reads the table as it lies; `user @ table.T` would copy it into an ONNX graph.
        return F.linear(user, table, self.popularity + self.recent())

    def served_scores(self, user: Tensor, table: Tensor) -> Tensor:
        """The same as they are served, before memory: as sharp as they proved right (see blend.py)."""
        return F.linear(self.sharpness * user, table, self.served_bias())

    def served_bias(self) -> Tensor:
        """What every user's score of an item [V+1] holds: its popularity in the long run and of late."""
        return self.sharpness * self.popularity + self.recent()

    def recent(self) -> Tensor:
        """What recent popularity adds to the scores [V+1]."""
        return self.recent_VR @ self.blend[:-MEMORIES]

    def forgetful(self) -> bool:
        """Whether it was never told what came near what: it was just made, or comes from a checkpoint."""
        return self.neighbour_VM.shape[1] == 1

    def remembering(self) -> bool:
        """Whether memory counts for anything."""
        return bool(self.blend[-MEMORIES:].any())

    def mixture(self, scores: Tensor, item_index: Tensor) -> Tensor:
        """What network and memory together say: [B, V+1], each item's probability next to the others.

        scores: [B, V+1] of `served_scores`, -inf where an item may not be listed, which memory does not change.
        item_index: int64[B, L], the histories.
        """
        neighbour, strength = self.recalled(item_index)
        newest, before = self.blend[-MEMORIES:]
        strength = strength * torch.cat((newest[None], before.expand(strength.shape[1] - 1)))[:, None]
        neighbour, strength = neighbour.flatten(1), strength.flatten(1)
        strength = strength * scores.gather(1, neighbour).isfinite()
        return scores.softmax(dim=1).scatter_add(1, neighbour, strength)

    def recalled(self, item_index: Tensor) -> tuple[Tensor, Tensor]:
        """What the newest items of the histories int64[B, L] remember, the newest one's first.

        Neighbours int64[B, P, M], 0 = none, and how strongly, float32[B, P, M]; P = NEWEST or less.
        """
        newest = item_index[:, -NEWEST:].flip(1)
        fading = 1.0 / torch.arange(1, newest.shape[1] + 1, device=item_index.device)
        return self.neighbour_VM[newest], self.strength_VM[newest] * fading[:, None]


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
            self.register_buffer("table_VD", network.table().clone())
            self.register_buffer("bias_V", network.served_bias().clone())
        self.table_VD: Tensor
        self.bias_V: Tensor
        self.remembering = network.remembering()

    def forward(
        self, item_index: Tensor, action: Tensor, gap: Tensor, age: Tensor, counters: Tensor, available: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Exact top-K: top_index int64[B, K] (1-based), top_score float32[B, K], best first.

        age: int64[B, L]. counters: float32[B, C]. available: bool[V+1]. Index 0, items in the row's own history
        and unavailable items are masked to -inf; where fewer than K items remain, the row ends in -inf.
        """
        user_BD = self.network(self.table_VD, item_index, action, gap, age[:, None], counters[:, None])[:, 0]
        score_BV = F.linear(self.network.sharpness * user_BD, self.table_VD, self.bias_V)
        score_BV = score_BV.masked_fill(~available, float("-inf"))
        # Index 0 (padding, unknown) is among what is scattered as soon as a row is not full …
        score_BV = score_BV.scatter(1, item_index, float("-inf"))
        # … and is masked for full rows here.
        score_BV = F.pad(score_BV[:, 1:], (1, 0), value=float("-inf"))
        if not self.remembering:
            top = score_BV.topk(self.top_k, dim=1, sorted=True)
            return top.indices, top.values
        top = self.network.mixture(score_BV, item_index).topk(self.top_k, dim=1, sorted=True)
        # A row of which nothing may be listed has no probabilities, but NaN.
        return top.indices, torch.where(top.values > 0, top.values.log(), float("-inf"))
