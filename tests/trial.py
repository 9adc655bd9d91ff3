"""A fault under load: clicks come at a steady rate before, during and after it, a reader polls every row all the while.

The reader fails the trial when a row goes back (in write time or in what it knows), is of no known release or of two.
The clock runs from the end of the fault to the last moment at which a row did not know a click older than LAG_S, or
Cassandra did not answer: at most RECOVERY_S.
In the end the job in plain Python judges features and rows, user by user.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cassandra import DriverException
from cassandra.cluster import NoHostAvailable

from schemas.click import Click
from schemas.errors import UnreachableError
from tests.harness import RunningJob, ms_of
from tests.oracle import Oracle
from tests.traffic import FIRST, SECOND, make_clicks

# Set by `make faults`: its figures are kept, and its bounds are strict. `make test` may run on a busy machine, and asks
# whether all is well in the end.
KEEP = "KEEP_FAULT_TABLE"
STRICT = bool(os.environ.get(KEEP))
PER_SECOND = 150
USERS = 200
# A row may be so far behind its user's clicks and counts as current.
LAG_S = 1.5 if STRICT else 10.0
RECOVERY_S = 60.0 if STRICT else 180.0
# At least one checkpoint lies before the fault. After it all must be well for so long: what a fault does may show late.
BEFORE_S, STEADY_S = 3.0, 4.0
# Clicks for so long are made beforehand; a fault that lasts longer than that is none of ours.
LONGEST_S = 200
POLL_S = 0.2
METRICS_S = 1.5
# After a restart Flink may go on telling the old attempt's figures; by then it has told the new one's.
LATE_METRICS_S = 10.0
RELEASES = {version: (frozenset(ids), best) for ids, best, version in (FIRST, SECOND)}
Release = tuple[Sequence[str], Sequence[str], str]


@dataclass
class Outcome:
    """What became of a fault. replayed: events that the attempt after it read again; None where that was several."""

    fault: str
    recovery_s: float | None = None
    replayed: int | None = 0
    verdict: str = "not finished"


class Reader:
    """Polls rows, notes what must never be seen, and when all were current."""

    def __init__(self, job: RunningJob, users: Sequence[str]) -> None:
        self._job = job
        self._users = list(users)
        self._written = dict.fromkeys(users, 0)
        self._known = dict.fromkeys(users, 0)
        self._marks = ", ".join("%s" for _ in users)
        self.failures: list[str] = []
        self.polls = 0

    def poll(self) -> dict[str, int] | None:
        """The newest event that each user's row knows, ms; None while Cassandra does not answer."""
        statement = (
            f"SELECT user_id, item_ids, source, model_version, event_time, WRITETIME(item_ids) AS written "
            f"FROM {self._job.settings.keyspace}.recommendations WHERE user_id IN ({self._marks})"
        )
        try:
            rows = list(self._job.session.execute(statement, self._users))
        except (DriverException, NoHostAvailable):
            return None
        self.polls += 1
        for row in rows:
            self._look(row)
        return self._known

    def _look(self, row: Any) -> None:
        user, event_time = row.user_id, ms_of(row.event_time)
        if row.written < self._written[user]:
            self.failures.append(f"the row of {user} went back in write time")
        if event_time < self._known[user]:
            self.failures.append(f"the row of {user} forgot {self._known[user] - event_time} ms")
        self._written[user], self._known[user] = row.written, event_time
        if row.source != "model" or row.model_version not in RELEASES:
            self.failures.append(f"a row of {row.source} {row.model_version}")
            return
        known, best = RELEASES[row.model_version]
        shown = set(row.item_ids)
        if not shown <= known or row.item_ids != [item for item in best if item in shown]:
            self.failures.append(f"the row of {user} is not wholly of {row.model_version}")


class Trial:
    """`with Trial(job, "what happens") as trial:` — the block is the fault; when it ends, the fault has ended."""

    def __init__(
        self,
        job: RunningJob,
        fault: str,
        per_second: float = PER_SECOND,
        clicks: Iterable[Click] | None = None,
        release: Release = FIRST,
        recovery_s: float = RECOVERY_S,
    ) -> None:
        self.job = job
        self.outcome = Outcome(fault)
        self.oracle = Oracle()
        self._release = release
        self._per_second = per_second
        self._recovery_s = recovery_s
        seed = f"{abs(hash(fault)) % 10**6}-{time.time_ns() % 10**6}"
        self._clicks = list(clicks or make_clicks(seed, int(LONGEST_S * per_second), USERS))
        self._sent: list[float] = []
        self._ending = threading.Event()
        self._settled = threading.Event()
        self._current_since = float("inf")
        self._errors: list[BaseException] = []
        self.reader = Reader(job, sorted({click.user_id for click in self._clicks}))
        self._threads = [threading.Thread(target=act, daemon=True) for act in (self._feed, self._watch)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        time.sleep(BEFORE_S)
        try:
            self.job.eventually("rows are current before the fault", lambda: time.monotonic() > self._current_since)
        except BaseException:
            self._ending.set()
            self._settled.set()
            raise
        self._before = _attempt(self.job)
        self._sent_before = len(self._sent)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        ended = time.monotonic()
        OUTCOMES.append(self.outcome)
        try:
            if error is None:
                self._recover(ended)
        except BaseException as failure:
            self.outcome.verdict = f"broken: {failure}"[:300]
            raise
        finally:
            self._ending.set()
            self._settled.set()
            for thread in self._threads:
                thread.join()

    @property
    def sent(self) -> int:
        """Clicks sent so far."""
        return len(self._sent)

    def _recover(self, ended: float) -> None:
        while not self._well(ended):
            late = time.monotonic() - ended - STEADY_S
            assert late < self._recovery_s, (
                f"rows are not current {late:.0f} s after the fault's end; job: {self._trouble()}"
            )
            assert not self._errors, self._errors
            time.sleep(POLL_S)
        self.outcome.recovery_s = round(max(0.0, self._current_since - ended), 1)
        self._ending.set()
        self._threads[0].join()
        for click in self._clicks[: len(self._sent)]:
            self.oracle.click(click)
        self.job.agree(self.oracle, self._release)
        since = len(self._sent) - self._sent_before
        after, deadline = _attempt(self.job), time.monotonic() + LATE_METRICS_S
        while after[:3] != self._before[:3] and after[3] < since and time.monotonic() < deadline:
            after = _attempt(self.job)
        if after[:3] != self._before[:3]:
            # A new attempt read everything since its checkpoint; all beyond what came since the fault is read again.
            once = after[0] != self._before[0] or after[1] == self._before[1] + 1
            self.outcome.replayed = after[3] - since if once and after[3] >= since else None
        self._settled.set()
        self._threads[1].join()
        assert not self._errors, self._errors
        assert not self.reader.failures, (len(self.reader.failures), self.reader.failures[:5])
        self.outcome.verdict = "held"

    def _well(self, ended: float) -> bool:
        """Whether the job runs and rows have been current for STEADY_S."""
        steady_since = time.monotonic() - STEADY_S
        if max(ended, self._current_since) > steady_since:
            return False
        return self._trouble() is None

    def _trouble(self) -> str | None:
        return self.job.stack.server("jobmanager").trouble()

    def _feed(self) -> None:
        """Sends until told to stop."""
        try:
            began = time.monotonic()

            def until_told() -> Iterable[Click]:
                for number, click in enumerate(self._clicks):
                    if self._ending.is_set():
                        return
                    yield click
                    self._sent.append(time.monotonic())
                    time.sleep(max(0.0, began + number / self._per_second - time.monotonic()))

            self.job.click(until_told())
        except BaseException as error:
            self._errors.append(error)

    def _watch(self) -> None:
        """Polls until the end. Current is a poll in which every row knows all that was sent LAG_S before."""
        needed: dict[str, int] = {}
        counted = 0
        try:
            while not self._settled.wait(POLL_S):
                now = time.monotonic()
                while counted < len(self._sent) and self._sent[counted] < now - LAG_S:
                    click = self._clicks[counted]
                    needed[click.user_id] = max(needed.get(click.user_id, 0), click.event_time)
                    counted += 1
                known = self.reader.poll()
                if known is None or any(known[user] < when for user, when in needed.items()):
                    self._current_since = float("inf")
                elif self._current_since > now and needed:
                    self._current_since = now
        except BaseException as error:
            self._errors.append(error)


# Outcomes of this run of pytest, in their order.
OUTCOMES: list[Outcome] = []


def _attempt(job: RunningJob) -> tuple[str, int, int, int]:
    """What tells attempts apart: the job's id, restores, its JobManager; and the records this attempt has read."""
    view = job.stack.rest.jobs()[-1]
    manager = job.stack.server("jobmanager").process.pid or 0
    try:
        job.metric("features_records")
        time.sleep(METRICS_S)  # Flink gives what it fetched last, and only then fetches anew
        return view.id, job.stack.rest.restored(view.id), manager, job.metric("features_records")
    except UnreachableError:
        return view.id, -1, manager, 0


def note(fault: str, recovery_s: float | None = None) -> None:
    """An outcome that a test found without a trial; None where there was nothing to recover from."""
    OUTCOMES.append(Outcome(fault, None if recovery_s is None else round(recovery_s, 1), None, "held"))


def as_rows(outcomes: Iterable[Outcome]) -> list[Mapping[str, Any]]:
    """Outcomes as they are written down."""
    return [vars(outcome) for outcome in outcomes]
