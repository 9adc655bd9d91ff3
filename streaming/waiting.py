"""waiting: the users of a shard that is behind. Their states are kept up to date, their rows come later, each once.

A row costs some ten times what it costs to bring a state up to date. So a shard that is behind takes in its events
first, until it has caught up or HOLD_MS are over; then come the rows of those who waited, the first ones first. Whose
events have piled up gets one row for all of them instead of one after the other, each replaced by the next.
A user waits once, however many events come meanwhile, and the row is that of the state as it is then: no two rows of
one attempt bear one write time (stamps.py).
"""

import numpy as np
from numpy.typing import NDArray
from pyflink.datastream.state import MapState

# So long a shard that does not catch up makes no rows. Shorter: fewer events of a user meet in one row, and all are
# current later; 10 s ended just before 8 TaskManagers had read 4 million events. Longer: who comes meanwhile waits
# longer for anything at all.
HOLD_MS = 20_000
# How often a shard is looked at that holds back its rows; nothing that came in between means that all was read.
LOOK_MS = 100
# Users whose rows are made at once. More: what comes meanwhile waits longer; these take two cores 0.15 s. Fewer: more
# to do besides; 512 give a tenth fewer rows a second.
PIECE = 1024

Ints = NDArray[np.int64]
_NONE: tuple[Ints, Ints] = np.zeros(0, np.int64), np.zeros(0, np.int64)


class Waiting:
    """Of one shard. kept: Flink's map for them, number of a piece → ids of at most PIECE users.

    rings: when the timer rings that was set since the start, ms; one of a former life may ring hours from now, should
    the clock have been put back.
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
        self._behind = self._fed = False
        self._hold_until = 0
        self._go_until = -1

    def __len__(self) -> int:
        return len(self._piece_of)

    @property
    def going(self) -> bool:
        """Whether the rows of those are being made who waited when it began; who came since waits for the next time."""
        return self._go_until >= 0

    def add(self, users: list[str], owner: Ints, produced: Ints, behind: bool) -> None:
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
        self._behind, self._fed = behind, True

    def due(self, now: int) -> bool:
        """Whether rows are to be made now, ms; asked every LOOK_MS, or at once for as long as it was so."""
        if self.going:
            return True
        self._hold_until = self._hold_until or now + HOLD_MS
        if self._behind and self._fed and now < self._hold_until:
            self._fed = False
            return False
        self._go_until = self._following
        return True

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
            self._go_until, self._hold_until = -1, 0
        return users, produced[shown]
