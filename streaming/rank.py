"""From states to rows: the model's lists where it can help, the trending list elsewhere, in Cassandra's wire form.

A frozen list travels as its length and then each element with its length before it, all big-endian; joined from parts
that were prepared once per item, a row costs a few microseconds.
"""

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.features import model_inputs
from schemas.ids import hash_ids
from schemas.recommendation import LIST_LENGTH, SOURCE_MODEL, SOURCE_TRENDING
from schemas.user_state import States
from streaming.model_slot import BATCH_SIZES, Model
from streaming.trending import Trending

_LENGTH = struct.Struct(">i")
# One float of a list: its size in bytes, then its value.
_ELEMENT = np.dtype([("size", ">i4"), ("value", ">f4")])


class Lists(NamedTuple):
    """Lists of U users. item_ids, scores: wire form. source, version: of each user."""

    item_ids: list[bytes]
    scores: list[bytes]
    source: list[str]
    version: list[str]


class Fallback:
    """The trending list, ready to be cut to each user."""

    def __init__(self, trending: Trending, unavailable: set[str]) -> None:
        keep = [i for i, item in enumerate(trending.item_ids) if item not in unavailable]
        ids = [trending.item_ids[i] for i in keep]
        self.hashes = hash_ids(ids)
        self.parts = [_LENGTH.pack(len(raw)) + raw for raw in (item.encode() for item in ids)]
        self.scores = np.array([trending.counts[i] for i in keep], np.float32)

    def lists(self, histories: NDArray[np.uint64]) -> tuple[list[bytes], list[bytes]]:
        """Item ids and scores for users by their histories uint64[B, L]: trending items they have not had."""
        item_ids, scores = [], []
        for history in histories:
            rows = np.flatnonzero(~np.isin(self.hashes, history))[:LIST_LENGTH]
            item_ids.append(wire_list([self.parts[i] for i in rows.tolist()]))
            scores.append(wire_floats(self.scores[rows]))
        return item_ids, scores


def rank(model: Model | None, available: NDArray[np.bool_], fallback: Fallback, states: States) -> Lists:
    """Lists for U users with these states. available: bool[V + 1], by the model's item index."""
    count = len(states)
    item_ids: list[bytes] = [b""] * count
    scores: list[bytes] = [b""] * count
    source = [SOURCE_TRENDING] * count
    version = [""] * count
    helped = np.zeros(count, np.bool_)
    if model is not None:
        inputs = model_inputs(states, model.vocabulary)
        # A model knows nothing of a user none of whose items it knows.
        known = np.flatnonzero((inputs["item_index"] != 0).any(axis=1))
        for start in range(0, len(known), BATCH_SIZES[-1]):
            rows = known[start : start + BATCH_SIZES[-1]]
            index, score = model.run({name: values[rows] for name, values in inputs.items()}, available)
            shown = np.isfinite(score)
            for place, user in enumerate(rows.tolist()):
                chosen = index[place][shown[place]]
                if not len(chosen):
                    continue  # every score is masked or not finite
                item_ids[user] = wire_list(model.parts[chosen].tolist())
                scores[user] = wire_floats(score[place][shown[place]])
                source[user] = SOURCE_MODEL
                version[user] = model.manifest.version
                helped[user] = True
    rest = np.flatnonzero(~helped)
    if len(rest):
        rest_ids, rest_scores = fallback.lists(states["ring"]["item"][rest])
        for user, ids, values in zip(rest.tolist(), rest_ids, rest_scores, strict=True):
            item_ids[user], scores[user] = ids, values
    return Lists(item_ids, scores, source, version)


def wire_list(parts: list[bytes]) -> bytes:
    """A frozen list of elements that carry their length already."""
    return _LENGTH.pack(len(parts)) + b"".join(parts)


def wire_floats(values: NDArray[np.float32]) -> bytes:
    """A frozen list of floats."""
    elements = np.empty(len(values), _ELEMENT)
    elements["size"] = 4
    elements["value"] = values
    return _LENGTH.pack(len(values)) + elements.tobytes()
