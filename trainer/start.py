"""The network a fit begins with: a first one from counts, or a grown copy of one that was saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.config import DAY_MS
from trainer.cooccurrence import item_vectors
from trainer.files import write_whole
from trainer.memory import memory_of
from trainer.network import Network, log_share
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories

# Vectors of items that a saved network did not know start small, so that they disturb nothing.
NEW_ITEM_SPREAD = 0.02
# Popularity "of late" is counted over these spans, in days; one a column of Network.recent_VR.
RECENT_DAYS = (1.0, 7.0, 30.0)


def start_network(
    checkpoint: Path | None, config: NetworkConfig, histories: Histories, item_ids: Sequence[str], seed: int
) -> Network:
    """The network of a checkpoint, or a first one of these sizes when there is none to go on from.

    histories: what may be learned from; a first network takes its start from counts over them.
    """
    if checkpoint is not None:
        return grown_network(checkpoint, item_ids, config.text, seed)
    return first_network(config, histories, seed)


def first_network(config: NetworkConfig, histories: Histories, seed: int) -> Network:
    """A network whose item vectors and popularity start from counts over the histories."""
    torch.manual_seed(seed)
    network = Network(config)
    with torch.no_grad():
        network.item.weight.copy_(item_vectors(histories, config.items, config.width, seed))
    network.set_popularity(item_counts(histories, config.items))
    return network


def grown_network(checkpoint: Path, item_ids: Sequence[str], text: int, seed: int) -> Network:
    """The network of a checkpoint for the items of today: known ones keep what was learned of them.

    text: width of today's text vectors; where it is another one, what they say is learned anew. Raises OSError, or
    RuntimeError and KeyError when the file is not a checkpoint of this version.
    """
    stored: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    config = replace(NetworkConfig(**stored["config"]), items=len(item_ids), text=text)
    torch.manual_seed(seed)
    network = Network(config)
    state = stored["state"]
    index_then = {item_id: index for index, item_id in enumerate(stored["item_ids"], start=1)}
    kept = [index for index, item_id in enumerate(item_ids, start=1) if item_id in index_then]
    now = torch.tensor([0, *kept])
    then = torch.tensor([0, *(index_then[item_ids[index - 1]] for index in kept)])
    with torch.no_grad():
        item = torch.randn(config.items + 1, config.width) * NEW_ITEM_SPREAD
        item[now] = state["item.weight"][then]
        # A new item starts as little wanted as the least wanted known one.
        popularity = torch.full((config.items + 1,), float(state["popularity"].min()))
        popularity[now] = state["popularity"][then]
    grown = {**network.state_dict(), **state, "item.weight": item, "popularity": popularity}
    if stored["config"]["text"] != text:
        grown.pop("text.weight", None)
        if network.text is not None:
            grown["text.weight"] = torch.zeros_like(network.text.weight)
    network.load_state_dict(grown)
    return network


def save_checkpoint(network: Network, item_ids: Sequence[str], target: Path) -> None:
    """Everything needed to go on from this network, in one file that appears whole."""
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    content = {"config": asdict(network.config), "item_ids": list(item_ids), "state": state}
    write_whole(target, lambda path: torch.save(content, path))


def item_counts(histories: Histories, items: int, since_ms: int | None = None) -> Tensor:
    """Events by item int64[V+1], those since a moment if one is given."""
    index = histories.item_index
    if since_ms is not None:
        index = index[histories.event_time >= since_ms]
    return torch.from_numpy(np.bincount(index, minlength=items + 1))


def know(network: Network, histories: Histories) -> None:
    """Tell a network, in place, what counts beside it: recent popularity and memory, as the histories end."""
    network.set_recent(recent_popularity(histories, network.config.items))
    network.set_memory(memory_of(histories, network.config.items))


@torch.no_grad()
def meet(network: Network, before: Histories, histories: Histories) -> None:
    """Tell a network, in place, what came near what by the end of the histories, and place what is new by it.

    An item without any event `before` begins where, on average, the items are that it came near; as popular as it is.
    """
    items = network.config.items
    network.set_memory(memory_of(histories, items))
    counts = item_counts(histories, items)
    met = (item_counts(before, items) > 0).to(network.popularity.device)
    near_met = (network.neighbour_VM > 0) & met[network.neighbour_VM]
    strength = network.strength_VM * near_met
    new = ~met & (strength.sum(dim=1) > 0)
    new[0] = False
    if not new.any() or not met[1:].any():
        return
    own = network.item.weight
    near = (strength[new, :, None] * own[network.neighbour_VM[new]]).sum(dim=1)
    usual = own[met].norm(dim=1).mean()
    own[new] = near / near.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) * usual
    network.popularity[new] = log_share(counts).to(own.device)[new]


def recent_popularity(histories: Histories, items: int) -> Tensor:
    """For Network.set_recent: float32[V+1, R], counted back from the newest event of the histories."""
    if len(histories) == 0:
        return torch.zeros(items + 1, len(RECENT_DAYS))
    now = int(histories.event_time.max())
    spans = [log_share(item_counts(histories, items, now - int(days * DAY_MS))) for days in RECENT_DAYS]
    return torch.stack(spans, dim=1)
