"""How much recent popularity and memory count beside the network: learned, on events that none of them learned from.

The network's own scores of a sample of check events stay as they are; beside them a handful of weights is fitted by
cross-entropy over the whole catalogue, what the user had masked as when served.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.fit import EVALUATED_AT_ONCE, Check, gains, hide_own, score_network
from trainer.network import MEMORIES, Network
from trainer.sequences import evenly

# Scores in memory at once, events × items: a matrix of 32 MB.
SCORES = 8_000_000
FEWEST_EVENTS, MOST_EVENTS = 300, 4_000
# Fewer than these say nothing: what was found before stays.
LEAST_EVENTS = 50
ITERATIONS = 20
# Where the weights of memory are fitted from.
FIRST_MEMORY = 0.1
# Cross-entropy asks for probabilities, a list for the first places alone, where memory is sharper: of the fitted
# weights of memory times these, those with the best lists are kept.
SCALES = (0.0, 1.0, 2.0, 4.0)
# As good as -inf under a softmax.
FAR = -1e4
# Pulls weights to zero, in nats per squared unit: what a few events suggest by chance is not followed.
DECAY = 1e-3


@torch.no_grad()
def fit_blend(network: Network, check: Check) -> None:
    """Set the network's blend and sharpness from the events of a check, with the popularity and memory it holds now."""
    most = min(MOST_EVENTS, max(FEWEST_EVENTS, SCORES // (network.config.items + 1)))
    places, histories = evenly(check.places, most), check.histories
    if len(places) < LEAST_EVENTS:
        return
    network.eval()
    before = network.blend.clone(), network.sharpness.clone()
    network.blend[:-MEMORIES] = 0.0
    network.sharpness.fill_(1.0)
    table = network.table()
    at_once = [places[at : at + EVALUATED_AT_ONCE] for at in range(0, len(places), EVALUATED_AT_ONCE)]
    own = torch.cat([score_network(network, table, histories, at - 1) for at in at_once])
    item_index = torch.from_numpy(histories.seen(places - 1)).to(own.device)
    hide_own(own, histories, item_index)
    target = torch.from_numpy(histories.item_index[places]).to(own.device)
    fitted = _fitted(network, own, item_index, target)
    if fitted is None:
        network.blend.copy_(before[0])
        network.sharpness.copy_(before[1])
        return
    weight, sharpness = fitted
    network.blend.copy_(weight)
    network.sharpness.copy_(sharpness)
    shown = sharpness * own + network.recent()

    def gain(scale: float) -> float:
        network.blend[-MEMORIES:] = scale * weight[-MEMORIES:]
        mixed = network.mixture(shown, item_index)
        return float(gains((mixed > mixed.gather(1, target[:, None])).sum(dim=1)).mean())

    network.blend[-MEMORIES:] = max(SCALES, key=gain) * weight[-MEMORIES:]


def _fitted(network: Network, own: Tensor, item_index: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    """Blend and sharpness with the least cross-entropy; None when there are no such numbers.

    own: [B, V+1], the network's scores without recent popularity, masked.
    """
    finite = own.clamp(min=FAR)  # infinity has no gradient
    neighbour, strength = network.recalled(item_index)
    strength = strength * own.gather(1, neighbour.flatten(1)).isfinite().view_as(strength)
    # Of the newest item, and of those before it: all that is remembered, and of it what is right. [B, MEMORIES] each
    everything = strength.sum(dim=2)
    right = (strength * (neighbour == target[:, None, None])).sum(dim=2)
    everything, right = (torch.stack((part[:, 0], part[:, 1:].sum(dim=1)), dim=1) for part in (everything, right))
    with torch.enable_grad():
        # Memory and sharpness as logarithms: neither is ever below nothing.
        recent = torch.zeros(network.config.recent, device=own.device, requires_grad=True)
        memory = torch.full((MEMORIES,), math.log(FIRST_MEMORY), device=own.device, requires_grad=True)
        sharp = torch.zeros((), device=own.device, requires_grad=True)
        optimiser = torch.optim.LBFGS([recent, memory, sharp], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            scores = sharp.exp() * finite + network.recent_VR @ recent
            expected = (scores.gather(1, target[:, None])[:, 0] - scores.logsumexp(dim=1)).exp()
            mixed = (expected + right @ memory.exp()).log() - (everything @ memory.exp()).log1p()
            value: Tensor = DECAY * recent.square().sum() - mixed.mean()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimiser.step(loss)  # type: ignore[no-untyped-call]
    weight = torch.cat((recent.detach(), memory.detach().exp()))
    found = sharp.detach().exp()
    return (weight, found) if weight.isfinite().all() and found.isfinite() else None
