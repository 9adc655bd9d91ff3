"""How much recent popularity and memory count beside the network: learned, on events that neither has counted.

The network's own scores of a sample of check events stay as they are; a handful of weights is fitted beside them by
cross-entropy over the whole catalogue, what the user had masked as when served.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.fit import EVALUATED_AT_ONCE, Check, gains, hide_own, score_network
from trainer.network import Network
from trainer.sequences import evenly

# Scores in memory at once, events × items: 3 matrices of 30 MB.
SCORES = 8_000_000
FEWEST_EVENTS, MOST_EVENTS = 300, 4_000
ITERATIONS = 20
# Cross-entropy asks for probabilities, a list for the first places alone, where memory is sharper: of the fitted
# weights of memory times these, those with the best lists are kept.
SCALES = (0.0, 1.0, 2.0, 4.0, 8.0)
# Pulls weights to zero, in nats per squared unit: what a few events suggest by chance is not followed.
DECAY = 1e-3


def fit_blend(network: Network, check: Check) -> None:
    """Set the network's blend weights from the events of a check, with the popularity and memory it holds now."""
    most = min(MOST_EVENTS, max(FEWEST_EVENTS, SCORES // (network.config.items + 1)))
    places, histories = evenly(check.places, most), check.histories
    if len(places) == 0:
        return
    device = network.popularity.device
    network.eval()
    with torch.no_grad():
        table = network.table()
        at_once = [places[at : at + EVALUATED_AT_ONCE] for at in range(0, len(places), EVALUATED_AT_ONCE)]
        own = torch.cat([score_network(network, table, histories, at - 1) for at in at_once])
        item_index = torch.from_numpy(histories.seen(places - 1)).to(device)
        hide_own(own, histories, item_index)
        remembered = network.memories(item_index)
    target = torch.from_numpy(histories.item_index[places]).to(device)
    weight = network.blend.detach().clone().requires_grad_()
    recent = weight.numel() - len(remembered)
    optimiser = torch.optim.LBFGS([weight], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scores = own + network.recent_VR @ weight[:recent]
        for part, feature in enumerate(remembered):
            scores = scores + weight[recent + part] * feature
        value = F.cross_entropy(scores, target) + DECAY * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    fitted = weight.detach()
    if not torch.isfinite(fitted).all():
        return

    def gain(scale: float) -> float:
        scores = own + network.recent_VR @ fitted[:recent]
        for part, feature in enumerate(remembered):
            scores = scores + scale * fitted[recent + part] * feature
        return float(gains((scores > scores.gather(1, target[:, None])).sum(dim=1)).mean())

    fitted[recent:] *= max(SCALES, key=gain)
    network.blend.copy_(fitted)
