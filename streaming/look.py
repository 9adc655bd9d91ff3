"""What the job knows of one user: the state, made again from the user's events, and what the served model makes of it.

State depends on the set of a user's events alone, so reading them from Kafka gives the job's state without touching
the job. It costs one reading of `clicks`.
"""

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.click import decode_clicks
from schemas.erasure import decode_erasure
from schemas.features import Inputs, model_inputs
from schemas.item import Item
from schemas.topics import CLICKS, ERASURES
from schemas.user_state import States, apply_events, empty_states
from streaming.config import Settings
from streaming.model import Model, load, scorer_threads
from streaming.registry import registry
from streaming.topic import catalogue, messages, served_release

# Whether an event was ahead of its time was judged when it came; for this clock none is.
FAR_AHEAD_MS = 1 << 60


@dataclass(frozen=True)
class Inspection:
    """A user's state; with a model also its inputs and its candidates (item id, score), best first."""

    state: States
    items: dict[str, Item]
    names: dict[int, str]
    model: Model | None
    inputs: Inputs
    candidates: list[tuple[str, float]]


def look_at(settings: Settings, user_id: str) -> Inspection:
    """Look at one user. Raises UnreachableError, and ModelRefused when the announced release does not load."""
    key = user_id.encode()
    schema_by_id = registry(settings.kafka.schema_registry_url)
    forgotten_ms = -1
    for message in messages(settings, settings.topic(ERASURES)):
        if message.key() == key and decode_erasure(message.value(), key, schema_by_id=schema_by_id) == user_id:
            forgotten_ms = max(forgotten_ms, message.timestamp()[1])
    own = [
        message
        for message in messages(settings, settings.topic(CLICKS))
        if message.key() == key and message.timestamp()[1] > forgotten_ms
    ]
    clicks, _ = decode_clicks([m.value() for m in own], [key] * len(own), FAR_AHEAD_MS, schema_by_id)
    state = empty_states(1)
    apply_events(state, np.zeros(len(clicks), np.int64), clicks)
    names = dict(zip(clicks.item_hash.tolist(), clicks.item_ids, strict=True))
    items = catalogue(settings)
    release = served_release(settings)
    if release is None:
        return Inspection(state, items, names, None, {}, [])
    section = settings.streaming
    model = load(release, section.providers, scorer_threads(section.scorer_threads, 1), sys.executable)
    inputs = model_inputs(state, model.vocabulary)
    index, score = model.run(inputs, available_items(model, items))
    candidates = [
        (model.vocabulary.ids[i - 1], float(s))
        for i, s in zip(index[0].tolist(), score[0].tolist(), strict=True)
        if np.isfinite(s)
    ]
    return Inspection(state, items, names, model, inputs, candidates)


def available_items(model: Model, items: dict[str, Item]) -> NDArray[np.bool_]:
    """Which of the model's items may be recommended: bool[V + 1]."""
    available = np.ones(model.vocabulary.size + 1, np.bool_)
    for index, item_id in enumerate(model.vocabulary.ids, 1):
        if item_id in items and not items[item_id].available:
            available[index] = False
    return available
