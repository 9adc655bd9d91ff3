"""Every row in Cassandra against its user's events in Kafka, scored once more outside the job by the model it names.

A row that was mixed from two models, or is not what its model makes of the user, differs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.click import Clicks, decode_clicks
from schemas.features import model_inputs
from schemas.release import ModelRelease, decode_release
from schemas.topics import CLICKS, MODEL_RELEASES
from schemas.user_state import States, apply_events, empty_states
from streaming.config import Settings
from streaming.look import FAR_AHEAD_MS
from streaming.model import LARGEST, Model, load
from streaming.table import connect
from streaming.topic import messages

# Clicks decoded at once; a state is 1.6 KB, so that both stay small.
CHUNK = 20_000
# Batches of another size add up in another order.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Recount:
    """What was found.

    rows: rows by a model. wrong: rows unlike what their model makes of their user.
    versions: in order of service, each with what the trainer measured of it.
    """

    rows: int
    wrong: int
    versions: list[str]


def recount(settings: Settings) -> Recount:
    """Check every row. Raises UnreachableError, and ModelRefused for a release that does not load any more."""
    users, states = _states(settings)
    releases: dict[str, ModelRelease] = {}
    for message in messages(settings, settings.topic(MODEL_RELEASES)):
        release = decode_release(message.value())
        if isinstance(release, ModelRelease):
            releases[release.version] = release
    session = connect(settings)
    query = f"SELECT user_id, item_ids, scores, source, model_version FROM {settings.keyspace}.recommendations"
    by_version: dict[str, list[Any]] = {}
    for row in session.execute(query):
        if row.source == "model":
            by_version.setdefault(row.model_version, []).append(row)
    session.cluster.shutdown()
    wrong, versions = 0, []
    for version, rows in sorted(by_version.items()):
        model = load(releases[version], ["CPUExecutionProvider"], 1)
        ndcg, popularity = (model.manifest.metrics[name] for name in ("ndcg", "popularity_ndcg"))
        versions.append(f"{version} (NDCG@10 {ndcg:.4f}, popularity {popularity:.4f})")
        for start in range(0, len(rows), LARGEST):
            part = rows[start : start + LARGEST]
            wrong += _wrong(model, part, states[[users[row.user_id] for row in part]])
    return Recount(sum(map(len, by_version.values())), wrong, versions)


def _wrong(model: Model, rows: list[Any], states: States) -> int:
    available = np.ones(model.vocabulary.size + 1, np.bool_)
    index, score = model.run(model_inputs(states, model.vocabulary), available)
    wrong = 0
    for row, row_index, row_score in zip(rows, index, score, strict=True):
        shown = np.isfinite(row_score)
        expected = dict(
            zip(
                (model.vocabulary.ids[i - 1] for i in row_index[shown]),
                row_score[shown].tolist(),
                strict=True,
            )
        )
        # Items that score alike may change places; each item's own score may not change.
        same = len(row.item_ids) == len(expected) and all(
            abs(expected.get(item, expected_last) - value) < TOLERANCE
            for expected_last in [min(expected.values(), default=0.0)]
            for item, value in zip(row.item_ids, row.scores, strict=True)
        )
        wrong += not same
    return wrong


def _states(settings: Settings) -> tuple[dict[str, int], States]:
    """All users with their place, and their states, made from the events in Kafka."""
    users: dict[str, int] = {}
    states = empty_states(0)
    batch: list[tuple[bytes | None, bytes | None]] = []

    def add(states: States) -> States:
        clicks: Clicks
        clicks, _ = decode_clicks([v for v, _ in batch], [k for _, k in batch], FAR_AHEAD_MS)
        index = np.array([users.setdefault(user, len(users)) for user in clicks.user_ids], np.int64)
        states = np.concatenate((states, empty_states(len(users) - len(states))))
        touched, inverse = np.unique(index, return_inverse=True)
        part = states[touched]
        apply_events(part, inverse, clicks)
        states[touched] = part
        batch.clear()
        return states

    for message in messages(settings, settings.topic(CLICKS)):
        batch.append((message.value(), message.key()))
        if len(batch) >= CHUNK:
            states = add(states)
    return users, add(states) if batch else states
