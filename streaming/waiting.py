"""waiting: the users of an operator that is behind. Their states are kept up to date, their rows come later, each once.

A row costs some ten times what it costs to bring a state up to date. So an operator that is behind takes in its events
first, until it has caught up or HOLD_MS are over; then come the rows of those who waited, the first ones first. Whose
events have piled up gets one row for all of them instead of one after the other, each replaced by the next.
A user waits once, however many events come meanwhile, and the row is that of the state as it is then: no two rows of
one attempt bear one write time (stamps.py).
The shards of an operator share its thread: while rows of one are made no other gets events. So they hold back, and go,
together, one after the other.
"""

import math

import numpy as np
from numpy.typing import NDArray
from pyflink.datastream.state import MapState

# So long an operator that does not catch up makes no rows. Shorter: fewer events of a user meet in one row, and all are
# current later; 10 s ended just before 8 TaskManagers had read 4 million events. Longer: who comes meanwhile waits
# longer for anything at all.
HOLD_MS = 20_000
# How often a shard is looked at whose users wait. All was read when nothing old has come for as long.
LOOK_MS = 100
# So many pauses in a row count, even if a busy thread looked away: on a full machine it may be busy at every look.
PAUSES = 10
# Users whose rows are made at once. More: what comes meanwhile waits longer; these take two cores 0.15 s. Fewer: more
# to do besides; 512 give a tenth fewer rows a second.
PIECE = 1024

Ints = NDArray[np.int64]
_NONE: tuple[Ints, Ints] = np.zeros(0, np.int64), np.zeros(0, np.int64)


class Hold:
    """Of one operator: until when it holds back rows. quiet_ms: a pause this long means that nothing old is left.

    Times are of a clock that nobody sets, s.
    """

    def __init__(self, quiet_ms: int) -> None:
        self._quiet_s = max(quiet_ms, LOOK_MS) / 1000
        self._began: float | None = None
        self._old_came = -math.inf

    def old_came(self, now: float) -> None:
        """Events came that had waited in Kafka for long."""
        self._old_came = now

    def over(self, now: float, late_ms: int) -> bool:
        """Whether rows are to be made now; asked every LOOK_MS, and this time late_ms late.

        Who asks late does so from a thread that was busy: that nothing came meanwhile says little.
        """
        began = self._began = now if self._began is None else self._began
        read = now - self._old_came >= self._quiet_s * (1 if late_ms < LOOK_MS / 2 else PAUSES)
        if not read and now - began < HOLD_MS / 1000:
            return False
        self._began = None
        return True


class Waiting:
    """Of one shard. kept: Flink's map for them, number of a piece → ids of at most PIECE users.

    rings: when the timer rings that was set last, ms. Those of a former life are no use: should the clock have been put
    back, they ring hours from now.
    """

    def __init__(self, kept: MapState) -> None:
        self._kept = kept
        self.rings: int | None = None
        # Views of the map, made from it after a restart.
        self._pieces: dict[int, list[str]] = dict(sorted(kept.items()))
        self._piece_of = {user: number for number, users in self._pieces.items() for user in users}
        self._following = max(self._pieces, default=-1) + 1
        # Of each event since the start: whose piece will show it, and when it was produced, ms.
        self._events: list[tuple[Ints, Ints]] = []
        self._go_until = -1

    def __len__(self) -> int:
        return len(self._piece_of)

    @property
    def going(self) -> bool:
        """Whether the rows of those are being made who waited when it began; who came since waits for the next time."""
        return self._go_until >= 0

    def add(self, users: list[str], owner: Ints, produced: Ints) -> None:
        """Let these users wait. owner, produced: int64[N] of their N events, index into users and ms."""
        new = [user for user in users if user not in self._piece_of]
        for start in range(0, len(new), PIECE):
            part = new[start : start + PIECE]
            self._kept.put(self._following, part)
            self._pieces[self._following] = part
            self._piece_of.update(dict.fromkeys(part, self._following))
            self._following += 1
        pieces = np.array([self._piece_of[user] for user in users], np.int64)
        self._events.append((pieces[owner], produced))

    def go(self) -> None:
        """Let the rows be made of those who wait now."""
        if self:
            self._go_until = self._following

    def take(self) -> tuple[list[str], Ints]:
        """Who has waited longest, at most PIECE users, and when their events were produced, int64[N] ms."""
        users: list[str] = []
        for number, piece in list(self._pieces.items()):
            if users and len(users) + len(piece) > PIECE:
                break
            users += piece
            del self._pieces[number]
            self._kept.remove(number)
        for user in users:
            del self._piece_of[user]
        following = next(iter(self._pieces), self._following)
        pieces, produced = (np.concatenate(column) for column in zip(_NONE, *self._events, strict=True))
        shown = pieces < following
        self._events = [(pieces[~shown], produced[~shown])]
        if following >= self._go_until:
            self._go_until = -1
        return users, produced[shown]
