"""The verb `shrink VERSION`: a release and its checkpoint → a shrunk release, not announced, with its receipt."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
import torch

from schemas.errors import ContractError, ModelRefused
from schemas.features import Vocabulary
from trainer.collect import stored_catalogue, stored_clicks
from trainer.config import Plan
from trainer.export import export
from trainer.progress import say
from trainer.publish import Release, building_folder, new_version, release_folders, seal, verify
from trainer.resume import UNREADABLE
from trainer.sequences import histories, next_items
from trainer.shrink import Full, narrowed, put_in_place
from trainer.start import know, start_network
from trainer.text import text_vectors

# The newest part of what a release has learned from tells what matters in it now.
NEWEST_SHARE = 0.01


def shrink_release(plan: Plan, version: str | None, ways: Sequence[str]) -> Release:
    """Shrink a release, by default the newest one, as its checkpoint says it; judged on clicks that came after it.

    Raises ContractError when release, checkpoint or clicks are not there, ModelRefused when the shrunk model exceeds
    its bound.
    """
    known = release_folders(plan.releases)
    if version is None and not known:
        raise ContractError(f"there is no release to shrink in {plan.releases}", "run a cycle first")
    release = verify(plan.releases / version if version else known[-1])
    of = release.manifest.version
    full = _full(plan, release)
    say(f"{of}: {len(full.places)} events have come since it learned")
    narrow = narrowed(full, ways, plan.seed)
    made = new_version(plan.releases)
    folder = building_folder(plan.releases, made)
    try:
        export(full.network, release.item_ids(), full.learned, folder, plan.threads)
        receipt = put_in_place(full, narrow, ways, folder, plan.threads, plan.shrink_loss)
    except ModelRefused:
        shutil.rmtree(folder)
        raise
    metrics = {**release.manifest.metrics, "ndcg": receipt["ndcg_after"]}
    shrunk = seal(folder, plan.releases, made, of, metrics, release.manifest.trained_on, receipt)
    shutil.copyfile(plan.checkpoint(of), plan.checkpoint(made))
    say(f"wrote {shrunk.folder}; `python -m trainer publish {shrunk.folder}` announces it")
    return shrunk


def _full(plan: Plan, release: Release) -> Full:
    """The network of a release as it was exported, and the clicks as it sees them."""
    item_ids, until = release.item_ids(), release.until_ms
    events = histories(stored_clicks(plan.data), Vocabulary(item_ids))
    learned = events.before(until)
    places = next_items(events, until)
    if len(learned) == 0 or len(places) == 0:
        raise ContractError(
            f"{plan.data} holds {len(learned)} clicks from before and {len(places)} from after "
            f"{release.manifest.version} learned",
            "collect first, with the trainer.data that it was made with",
        )
    title = dict(stored_catalogue(plan.data).select("item_id", "title").iter_rows())
    text = text_vectors([title.get(item) or "" for item in item_ids], plan.text_model, plan.texts)
    config = plan.network(len(item_ids), text.shape[1])
    checkpoint = plan.checkpoint(release.manifest.version)
    try:
        network = start_network(checkpoint, config, learned, item_ids, plan.seed)
    except UNREADABLE as problem:
        raise ContractError(
            f"the checkpoint {checkpoint} is not readable ({problem})", "name a version that has one"
        ) from problem
    network.set_text(text)
    know(network, learned)
    metrics = release.manifest.metrics
    return Full(
        network=network,
        learned=learned,
        newest_from=int(np.quantile(learned.event_time, 1 - NEWEST_SHARE)),
        live=torch.ones(len(item_ids) + 1, dtype=torch.bool),
        steps=metrics.get("tune_steps", 0.0),
        seconds=metrics.get("tune_seconds", 0.0),
        events=events,
        places=places,
    )
