"""A network with fewer parts: the attention heads and feed-forward units that matter least are taken out.

How much a part matters is what leaving it out would change in the loss, to first order: |Σ weight · gradient| over
the weights that carry its output, added up over batches of recent events.
    "Pruning Convolutional Neural Networks for Resource Efficient Inference", Molchanov et al. 2017
What is left is an ordinary Network of another config; it learns to do without the rest in a short fit (see shrink.py).
Sharing, the other way to have fewer parameters, makes one block of all: it begins as their mean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainer.batches import batches
from trainer.network import Block, Network
from trainer.objective import Objective
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories, windows_of_one_pass

# What is left of the heads, and of the feed-forward width.
HEADS_KEPT, FEED_KEPT = 0.5, 0.5
# Windows that importance is estimated on, and how many at once.
ASKED_WINDOWS, ASKED_AT_ONCE = 2048, 64


@dataclass(frozen=True)
class Importance:
    """How much each part of one block matters, ≥ 0: heads [H], units of the feed-forward layer [F]."""

    heads: Tensor
    units: Tensor


def importance_of(
    network: Network, histories: Histories, since_ms: int | None, live: Tensor, seed: int
) -> list[Importance]:
    """Of each block, estimated on windows whose next event comes at since_ms or later; live: see Objective."""
    rng = np.random.default_rng(seed)
    windows = windows_of_one_pass(histories, rng)
    if since_ms is not None:
        windows = windows.take(np.flatnonzero(histories.event_time[windows.newest + 1] >= since_ms))
    order = rng.permutation(len(windows))[:ASKED_WINDOWS]
    steps = [order[at : at + ASKED_AT_ONCE] for at in range(0, len(order), ASKED_AT_ONCE)]
    network.eval()
    device = network.popularity.device
    objective = Objective(network, live.to(device), id_dropout=0.0)
    blocks = [block for block in network.blocks if isinstance(block, Block)]
    found = [
        Importance(torch.zeros(network.config.heads), torch.zeros(network.config.feed_width)) for _ in blocks
    ]  # fmt: skip
    for batch in batches(histories, windows, steps, device, slice(None)):
        network.zero_grad()
        loss = objective(batch) / (batch.target > 0).sum().clamp(min=1)
        loss.backward()
        for block, importance in zip(blocks, found, strict=True):
            by_input = _carried(block.attention.output.weight)
            importance.heads.add_(by_input.view(network.config.heads, -1).sum(dim=1).abs())
            importance.units.add_(_carried(block.feed_out.weight).abs())
    network.zero_grad()
    return found


def _carried(weight: Tensor) -> Tensor:
    """Σ weight · gradient of each input [in] of a layer [out, in]."""
    assert weight.grad is not None
    return (weight.detach() * weight.grad).sum(dim=0).cpu()


def pruned(network: Network, importance: list[Importance], heads: int, feed: int) -> Network:
    """The network with so many heads and feed-forward units in each block, the most important ones."""
    config = replace(network.config, heads=heads, feed=feed, head_width=network.config.one_head)
    state = dict(network.state_dict())
    for depth, (block, of_block) in enumerate(zip(network.blocks, importance, strict=True)):
        assert isinstance(block, Block)
        kept_heads = of_block.heads.topk(heads).indices.sort().values
        kept_units = of_block.units.topk(feed).indices.sort().values
        cut = _cut(block, kept_heads, kept_units, network.config.one_head)
        state.update({f"blocks.{depth}.{name}": values for name, values in cut.items()})
    return _filled(network, config, state)


def shared(network: Network) -> Network:
    """The network with one block in place of all, their mean; a bias that only the last one has is kept."""
    if network.config.shared:
        return network
    config = replace(network.config, shared=True)
    state = dict(network.state_dict())
    last = f"blocks.{config.blocks - 1}."
    for name in [name.removeprefix(last) for name in state if name.startswith(last)]:
        each = [state[f"blocks.{depth}.{name}"] for depth in range(config.blocks) if f"blocks.{depth}.{name}" in state]
        state.update({f"blocks.{depth}.{name}": torch.stack(each).mean(dim=0) for depth in range(config.blocks)})
    return _filled(network, config, state)


def parameters(network: Network) -> int:
    """How many numbers a fit may move, shared ones once."""
    return sum(parameter.numel() for parameter in network.parameters())


def _cut(block: Block, heads: Tensor, units: Tensor, one_head: int) -> dict[str, Tensor]:
    """The parameters of a block that change when only these heads and units are left."""
    attention = block.attention
    rows = (heads[:, None] * one_head + torch.arange(one_head)).flatten()
    both = torch.cat((rows, rows + attention.heads * one_head))
    gates = torch.cat((units, units + block.feed_out.in_features))
    cut = {
        "attention.query.weight": attention.query.weight[rows],
        "attention.query.bias": attention.query.bias[rows],
        "attention.key_value.weight": attention.key_value.weight[both],
        "attention.key_value.bias": attention.key_value.bias[both],
        "attention.output.weight": attention.output.weight[:, rows],
        "attention.distance_bias": attention.distance_bias[heads],
        "feed_in.weight": block.feed_in.weight[gates],
        "feed_in.bias": block.feed_in.bias[gates],
        "feed_out.weight": block.feed_out.weight[:, units],
    }
    if attention.age_bias is not None:
        cut["attention.age_bias"] = attention.age_bias[:, heads]
    return {name: values.detach() for name, values in cut.items()}


def _filled(former: Network, config: NetworkConfig, state: dict[str, Tensor]) -> Network:
    """A network of another config with this state, and with what the former one was told from outside."""
    network = Network(config)
    network.load_state_dict(state)
    for name, values in former.named_buffers(recurse=False):
        setattr(network, name, values.clone())
    return network.to(former.popularity.device)
