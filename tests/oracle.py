"""The job in plain Python: what state and rows must be, event by event, without numpy's batches, Flink or Kafka.

It shares with the job the published constants and the hash of ids, and nothing else.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from schemas.click import ACTIONS, Click
from schemas.features import COUNTER_NAMES, GAP_BUCKETS, SESSION_PAUSE_MS
from schemas.hashes import hash_ids
from schemas.recommendation import LIST_LENGTH
from schemas.user_state import HISTORY, HOUR_MS, WINDOWS
from tests.releases import ACTION_WEIGHT, COUNTER_WEIGHTS, GAP_WEIGHT, base_scores


@dataclass
class Oracle:
    """All that the accepted events say. `events`: user → event id → click."""

    events: dict[str, dict[str, Click]] = field(default_factory=lambda: defaultdict(dict))

    def click(self, click: Click) -> None:
        """An event; the same event id again changes nothing."""
        self.events[click.user_id].setdefault(click.event_id, click)

    def erase(self, user: str) -> None:
        """Forget a user."""
        self.events.pop(user, None)

    def history(self, user: str) -> list[Click]:
        """The newest events, oldest first; at the same time the event's hash decides."""
        known = list(self.events[user].values())
        known.sort(key=lambda c: (c.event_time, int(hash_ids([c.event_id])[0])))
        return known[-HISTORY:]

    def row(self, user: str, item_ids: Sequence[str], favourites: Sequence[str]) -> tuple[list[str], list[float], int]:
        """Items, scores and event time of a user's row under the release `make_release(item_ids, favourites)`."""
        history = self.history(user)
        had = {click.item_id for click in history}
        base = dict(zip(item_ids, base_scores(item_ids, favourites)[1:].tolist(), strict=True))
        best = sorted((item for item in item_ids if item not in had), key=lambda item: -base[item])[:LIST_LENGTH]
        bonus = self.bonus(user)
        return best, [base[item] + bonus for item in best], history[-1].event_time

    def bonus(self, user: str) -> float:
        """The number that releases made for tests add to all scores of a user."""
        history = self.history(user)
        gaps = [_gap_bucket(b.event_time - a.event_time) for a, b in pairwise(history)]
        return float(
            sum((ACTIONS.index(c.action) + 1) * ACTION_WEIGHT for c in history)
            + sum(gap * GAP_WEIGHT for gap in gaps)
            + sum(w * math.log1p(x) for w, x in zip(COUNTER_WEIGHTS.tolist(), self.counters(user), strict=True))
        )

    def counters(self, user: str) -> list[float]:
        """What COUNTER_NAMES name, before the logarithm."""
        history = self.history(user)
        newest = history[-1].event_time
        counted: Counter[str] = Counter()
        for click in self.events[user].values():
            for window in WINDOWS:
                age = newest // window.width_ms - click.event_time // window.width_ms
                if age < window.buckets:
                    counted[f"{window.name}_{click.action.lower()}"] += 1
        session = 1
        while session < len(history) and (
            history[-session].event_time - history[-session - 1].event_time <= SESSION_PAUSE_MS
        ):
            session += 1
        counted["history_events"] = len(history)
        counted["session_events"] = session
        counted["session_seconds"] = (newest - history[-session].event_time) // 1000
        return [counted[name] for name in COUNTER_NAMES]

    def trending(self, hours: int) -> list[str]:
        """The most wanted items of the last `hours` of event time, best first, ties by id."""
        clicks = [c for known in self.events.values() for c in known.values()]
        newest = max(click.event_time for click in clicks) // HOUR_MS
        wanted = Counter(
            c.item_id
            for c in clicks
            if newest - c.event_time // HOUR_MS < hours and c.action not in ("DISLIKE", "IMPRESSION")
        )
        return sorted(wanted, key=lambda item: (-wanted[item], item))


def _gap_bucket(ms: int) -> int:
    return min((ms // 1000 + 1).bit_length(), GAP_BUCKETS - 1)
