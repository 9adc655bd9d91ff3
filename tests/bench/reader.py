"""Cassandra as a reader sees it: whether rows are current, when a user's row changed, how many rows were written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cassandra import ConsistencyLevel

from schemas.settings import CommonSettings
from tests.bench.peers.driver import connect

# How often a row that is waited for is read; a read itself takes about a millisecond.
POLL_S = 0.01
LAST_USERS = 300
_EPOCH = datetime(1970, 1, 1)


class Reader:
    """Reads one system's rows."""

    def __init__(self, settings: CommonSettings) -> None:
        self._session = connect(settings)
        self._keyspace = settings.keyspace
        self._one = self._session.prepare(
            f"SELECT event_time, source FROM {settings.keyspace}.recommendations WHERE user_id = ?"
        )
        self._one.consistency_level = ConsistencyLevel.LOCAL_ONE

    def event_time(self, user: str) -> int:
        """The newest event a user's row knows, ms; 0 without a row."""
        row = self._session.execute(self._one, (user,)).one()
        return 0 if row is None else _ms(row.event_time)

    def source(self, user: str) -> str:
        row = self._session.execute(self._one, (user,)).one()
        return "" if row is None else str(row.source)

    def wait(self, user: str, event_time: int, patience_s: float) -> float:
        """Return the moment, s since 1970, at which a read showed the user's row current. Raises TimeoutError."""
        deadline = time.monotonic() + patience_s
        while self.event_time(user) < event_time:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the row of {user} is not current after {patience_s:.0f} s")
            time.sleep(POLL_S)
        return time.time()

    def wait_last(self, newest: Mapping[str, int], patience_s: float) -> float:
        """Return the moment at which the rows of those who came last became current. Raises TimeoutError.

        newest: user → event time, who came last is last. LAST_USERS of them are waited for one after the other, which
        costs Cassandra next to nothing: they are in every partition and every shard, and behind all others in it.
        """
        deadline, moment = time.monotonic() + patience_s, 0.0
        for user in list(newest)[-LAST_USERS:]:
            moment = self.wait(user, newest[user], max(1.0, deadline - time.monotonic()))
        return moment

    def wait_all(self, newest: Mapping[str, int], patience_s: float) -> float:
        """The same, and then every row is looked at: should one be behind, the clock runs on until none is."""
        moment, waiting = self.wait_last(newest, patience_s), self.behind(newest)
        while waiting:
            moment = self.wait_last({user: newest[user] for user in waiting}, patience_s)
            waiting = self.behind(newest)
        return moment

    def behind(self, newest: Mapping[str, int]) -> list[str]:
        """The users whose rows do not know their newest event."""
        rows: Any = self._session.execute(f"SELECT user_id, event_time FROM {self._keyspace}.recommendations")
        known = {row.user_id: _ms(row.event_time) for row in rows if row.event_time is not None}
        return [user for user, when in newest.items() if known.get(user, 0) < when]

    def rows_written(self) -> int:
        """Rows written to the table since it was made, by the node's own count."""
        counts: Any = self._session.execute(
            "SELECT count FROM system_views.local_write_latency WHERE keyspace_name = %s AND table_name = %s",
            (self._keyspace, "recommendations"),
        )
        row = counts.one()
        return 0 if row is None else int(row.count)

    def drop(self) -> None:
        """Drop the keyspace."""
        self._session.execute(f"DROP KEYSPACE IF EXISTS {self._keyspace}", timeout=60)

    def close(self) -> None:
        self._session.cluster.shutdown()


def _ms(moment: datetime | None) -> int:
    return 0 if moment is None else round((moment - _EPOCH).total_seconds() * 1000)
