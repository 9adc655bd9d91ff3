"""From states to lists: the model's where it can help, the trending list elsewhere, in Cassandra's wire form."""

from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from schemas.features import model_inputs
from schemas.hashes import hash_ids
from schemas.recommendation import LIST_LENGTH, SOURCE_MODEL, SOURCE_TRENDING
from schemas.release import ModelRelease
from schemas.user_state import States
from streaming.model import Model
from streaming.trending import Trending
from streaming.wire import Lists, wire_floats, wire_list, wire_value


class Fallback:
    """The trending list, ready to be cut to each user."""

    def __init__(self, trending: Trending, unavailable: Set[str]) -> None:
        keep = [i for i, item in enumerate(trending.item_ids) if item not in unavailable]
        ids = [trending.item_ids[i] for i in keep]
        self.hashes = hash_ids(ids)
        self.parts = [wire_value(item.encode()) for item in ids]
        self.scores = np.array([trending.counts[i] for i in keep], np.float32)

    def lists(self, histories: NDArray[np.uint64]) -> tuple[list[bytes], list[bytes]]:
        """Item ids and scores for users by their histories uint64[B, L]: trending items they have not had."""
        item_ids, scores = [], []
        for history in histories:
            rows = np.flatnonzero(~np.isin(self.hashes, history))[:LIST_LENGTH]
            item_ids.append(wire_list([self.parts[i] for i in rows.tolist()]))
            scores += wire_floats(self.scores[rows][None])
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
        size = model.sizes[-1]
        for start in range(0, len(known), size):
            rows = known[start : start + size]
            index, score = model.run({name: values[rows] for name, values in inputs.items()}, available)
            shown = np.isfinite(score)
            # Where a list ends early its rest is masked; such users are few, and go one by one.
            for places in [np.flatnonzero(shown.all(axis=1)), *np.flatnonzero(~shown.all(axis=1))[:, None]]:
                if not len(places):
                    continue
                kept = shown[places[0]]
                if not kept.any():
                    continue  # every score is masked or not finite
                parts = model.parts[index[places][:, kept]].tolist()
                for user, ids, values in zip(
                    rows[places].tolist(), parts, wire_floats(score[places][:, kept]), strict=True
                ):
                    item_ids[user], scores[user] = wire_list(ids), values
                    source[user], version[user] = SOURCE_MODEL, model.manifest.version
                helped[rows[places]] = True
    rest = np.flatnonzero(~helped)
    if len(rest):
        rest_ids, rest_scores = fallback.lists(states["ring"]["item"][rest])
        for user, ids, values in zip(rest.tolist(), rest_ids, rest_scores, strict=True):
            item_ids[user], scores[user] = ids, values
    return Lists(item_ids, scores, source, version)


def takes(release: ModelRelease, user_ids: list[str]) -> NDArray[np.bool_]:
    """Which users are in a canary's share, bool[U]: always the same; a larger share has those of a smaller one."""
    # Each release draws its own users: nobody is the first to meet every new model.
    salt = np.uint64(int(release.manifest_sha256[:16], 16))
    taken: NDArray[np.bool_] = (hash_ids(user_ids) ^ salt) < np.uint64(release.share * (1 << 64) // 100)
    return taken


def merged(taken: NDArray[np.bool_], lists: Lists, others: Lists) -> Lists:
    """Lists of all users: in the places that are taken, bool[U], those of the first."""
    columns = []
    for first, second in zip(lists, others, strict=True):
        column = np.empty(len(taken), np.object_)
        column[taken], column[~taken] = first, second
        columns.append(column.tolist())
    return Lists(*columns)
