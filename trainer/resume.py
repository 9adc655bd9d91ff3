"""The network of a cycle: the served one's, as far as its checkpoint can be read, then tuned."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from trainer.config import Plan
from trainer.material import Material
from trainer.network import Network
from trainer.processes import Processes
from trainer.progress import say
from trainer.start import start_network
from trainer.text import text_vectors
from trainer.tune import course_of_cycle, tune

# What torch and we raise at a file that is cut short, is of another version, or is no checkpoint at all.
UNREADABLE = (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError)


def resume_and_tune(
    material: Material, plan: Plan, curves: Path, together: Processes
) -> tuple[Network, dict[str, float]]:
    """The tuned network, equal in all processes, and how it went. curves: folder for TensorBoard."""
    network, learned_until = together.each(
        lambda: together.leader_first(lambda: resume(material, plan)), alike=lambda made: (made[0].config, made[1])
    )
    course = course_of_cycle(material.events, material.cut, learned_until)
    recipe = plan.recipe(learned_until is None, together.device.type == "cuda")
    return network, tune(network, course, recipe, torch.from_numpy(material.live), plan.seed, together, curves)


def resume(material: Material, plan: Plan) -> tuple[Network, int | None]:
    """The network to tune, and until when (ms) it has learned; None for one that starts from nothing."""
    text = text_vectors(material.titles, plan.text_model, plan.texts)
    config = plan.network(len(material.item_ids), text.shape[1])
    if material.checkpoint is not None and material.serving is not None:
        try:
            network = start_network(material.checkpoint, config, material.settled, material.item_ids, plan.seed)
        except UNREADABLE as problem:
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            say(f"the checkpoint {material.checkpoint} is not readable ({reason}): fitting from nothing")
        else:
            say(f"going on from {material.parent_version}")
            network.set_text(text)
            return network, material.serving.until_ms
    network = start_network(None, config, material.settled, material.item_ids, plan.seed)
    network.set_text(text)
    return network, None
