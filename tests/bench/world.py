"""The shop every benchmark plays: 50 000 users, 20 000 items, both with a few that are wanted much and many a little.

Nothing here is read from a file or a network: the same seed gives the same events, encoded as producers encode them.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from schemas.click import ACTIONS, Click, encode_click
from schemas.release import ModelRelease
from trainer.config import DAY_MS
from trainer.export import export
from trainer.publish import Release, seal
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories, from_sorted
from trainer.shrink import Full, narrowed, write_shrunk
from trainer.start import first_network, know

USERS, ITEMS, WIDTH = 50_000, 20_000, 64
# Wanted as 1 / rank ** s. Items as in most shops; users flatter: the busiest of 50 000 makes 0.5 % of the events.
ITEM_SKEW, USER_SKEW = 1.0, 0.6
# Weights of VIEW, CLICK, …: mostly looks, few purchases.
ACTION_SHARES = (0.30, 0.38, 0.08, 0.03, 0.05, 0.01, 0.01, 0.14)
# Enough of a history for popularity and memory to be more than zeros; the graph costs the same with any.
LEARNED_USERS, LEARNED_EVENTS = 2_000, 30
# What a fitted network gives recent popularity and memory: not zero, or the graph would leave them out.
BLEND = 0.1


@dataclass(frozen=True)
class Events:
    """N events ready to be produced. user: int64[N], number of the user. event_time: int64[N] ms, rising."""

    keys: list[bytes]
    values: list[bytes]
    user: NDArray[np.int64]
    event_time: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def newest(self) -> dict[str, int]:
        """The time of each user's newest event, ms: what the user's row must know in the end. Who came last is last."""
        _, behind = np.unique(self.user[::-1], return_index=True)
        last = np.sort(len(self) - 1 - behind)
        times = self.event_time[last].tolist()
        return {user_id(user): when for user, when in zip(self.user[last].tolist(), times, strict=True)}


def user_id(number: int) -> str:
    return f"user-{number:07d}"


def item_id(number: int) -> str:
    return f"item-{number:07d}"


def two_hours_ago_ms() -> int:
    return int(time.time() * 1000) - 2 * 3600 * 1000


class Shop:
    """Makes events; every call goes on where the one before ended, in event ids and in event time.

    from_ms: where times begin, 1 ms apart; two hours ago unless said otherwise, so that none is in the future.
    """

    def __init__(self, seed: int, users: int = USERS, items: int = ITEMS, from_ms: int | None = None) -> None:
        self.users, self.items = users, items
        self._rng = np.random.default_rng(seed)
        self._name = f"{seed:x}-{time.time_ns():x}"
        self._made = 0
        self._clock = two_hours_ago_ms() if from_ms is None else from_ms
        self._user_edges = _edges(users, USER_SKEW)
        self._item_edges = _edges(items, ITEM_SKEW)

    def events(self, count: int) -> Events:
        """`count` events of users and items drawn by how much they are wanted."""
        return self.of_users(np.searchsorted(self._user_edges, self._rng.random(count)))

    def one_each(self, first: int, last: int) -> Events:
        """One event of each of the users first … last - 1, in that order."""
        return self.of_users(np.arange(first, last))

    def of_users(self, user: NDArray[np.int64]) -> Events:
        """One event of each of these users int64[N], in that order."""
        count = len(user)
        item = np.searchsorted(self._item_edges, self._rng.random(count)).tolist()
        action = self._rng.choice(len(ACTIONS), count, p=ACTION_SHARES).tolist()
        extra = self._rng.random(count).tolist()
        event_time = self._clock + np.arange(1, count + 1)
        values = [
            encode_click(
                Click(
                    event_id=f"{self._name}-{self._made + place}",
                    user_id=user_id(who),
                    item_id=item_id(what),
                    event_time=when,
                    action=ACTIONS[how],
                    dwell_ms=int(1e4 * more) if more < 0.3 else None,
                    value=round(100 * more, 2) if more < 0.1 else None,
                    context={"page": "home", "device": "phone"} if more > 0.8 else {},
                )
            )
            for place, (who, what, how, when, more) in enumerate(
                zip(user.tolist(), item, action, event_time.tolist(), extra, strict=True)
            )
        ]
        self._made += count
        self._clock += count
        keys = [user_id(who).encode() for who in user.tolist()]
        return Events(keys, values, user.astype(np.int64), event_time)


def _edges(count: int, skew: float) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.arange(1, count + 1, dtype=np.float64) ** -skew
    edges: NDArray[np.float64] = np.cumsum(weights / weights.sum())
    edges[-1] = 1.0
    return edges


def make_release(releases: Path, version: str, items: int = ITEMS, width: int = WIDTH, seed: int = 1) -> Release:
    """A release of the graph that a cycle publishes by default, written by the trainer's own code.

    The network is not fitted: how long it computes does not depend on what it has learned.
    """
    torch.set_num_threads(1)
    histories = _histories(items, seed)
    network = first_network(NetworkConfig(items, width=width), histories, seed).eval()
    know(network, histories)
    network.blend.fill_(BLEND)
    item_ids = [item_id(number) for number in range(items)]
    releases.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=releases) as scratch:
        wide, lean = Path(scratch) / "wide", Path(scratch) / "lean"
        wide.mkdir()
        lean.mkdir()
        export(network, item_ids, histories, wide, threads=1)
        full = Full(network, histories, None, torch.ones(items + 1), 0.0, 0.0, histories, np.zeros(0, np.int64))
        write_shrunk(full, narrowed(full, ["lean"], seed), ["lean"], wide, lean, threads=1)
        return seal(lean, releases, version, None, {}, {"events": len(histories)})


def announcement(release: Release) -> ModelRelease:
    """The message that lets the job serve a release."""
    return ModelRelease(
        version=release.manifest.version,
        uri=release.folder.absolute().as_uri(),
        manifest_sha256=release.manifest_sha256,
        published_at=int(time.time() * 1000),
    )


def _histories(items: int, seed: int) -> Histories:
    rng = np.random.default_rng(seed)
    count = LEARNED_USERS * LEARNED_EVENTS
    times = np.sort(rng.integers(0, 10 * DAY_MS, (LEARNED_USERS, LEARNED_EVENTS)), axis=1)
    return from_sorted(
        np.repeat(np.arange(LEARNED_USERS), LEARNED_EVENTS),
        np.searchsorted(_edges(items, ITEM_SKEW), rng.random(count)) + 1,
        rng.choice(len(ACTIONS), count, p=ACTION_SHARES).astype(np.uint8),
        times.ravel() + int(time.time() * 1000) - 11 * DAY_MS,
    )
