"""What is learned and what is foreseen: three protocols, each a list of steps "learn this, then foresee that".

leave-one-out   a user's last event is foreseen, the one before it is for checking, the rest is learned. Time is not
                respected across users; it serves to compare with published tables.
successive      one cut in global time: what lies before is learned, its newest part for checking; then every later
                event of every user is foreseen in order, the history growing, the model frozen.
prequential     period after period: first foresee it, then learn it.

Only events that a recommendation could have foreseen are foreseen: they have a history, and an action worth
predicting. With `repeats` off (see Histories) an item the user already had is no target, and is masked: of the whole
past for the first two protocols, of the history that is read when served for the third.

Shapes: N events, E foreseen ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from trainer.fit import Check
from trainer.sequences import NOT_TARGETS, Histories, Ints

PROTOCOLS = ("leave-one-out", "successive", "prequential")
# Share of what is known, and of what has become known since the step before, that is for checking: the newest part.
CHECK_SHARE, CHECK_SHARE_OF_NEW = 0.05, 0.25


@dataclass(frozen=True)
class Step:
    """Learn `known` (and `check`), then foresee the events at `places` of `histories`."""

    begins_ms: int | None  # the moment that parts both; None when there is no such moment
    known: Histories
    known_until_ms: int | None
    check: Check | None
    histories: Histories
    places: Ints  # [E] rising in time
    learned: NDArray[np.bool_]  # [N] of histories: known or for checking
    masked: int | None  # a user's last so many events hide their items; None = all of them

    def already_had(self, places: Ints) -> tuple[Ints, Ints]:
        """Pairs (row, item index) that are masked for the events at these places; none when repeats are kept."""
        if self.histories.repeats:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        begin = self.histories.first[places]
        if self.masked is not None:
            begin = np.maximum(begin, places - self.masked)
        row, place = spans(begin, places)
        return row, self.histories.item_index[place]


def spans(begin: Ints, end: Ints) -> tuple[Ints, Ints]:
    """All numbers from begin[i] to end[i] - 1, as pairs (i, number): two int64 arrays."""
    length = end - begin
    row = np.repeat(np.arange(len(begin)), length)
    before = np.cumsum(length) - length
    return row, np.arange(len(row)) - before[row] + begin[row]


def foreseeable(histories: Histories, masked: int | None) -> NDArray[np.bool_]:
    """Which of the N events a recommendation could have foreseen: bool[N]."""
    place = np.arange(len(histories))
    possible = (histories.first < place) & (histories.item_index > 0) & ~np.isin(histories.action, NOT_TARGETS)
    if not histories.repeats:
        oldest = histories.first if masked is None else np.maximum(histories.first, place - masked)
        possible &= histories.earlier < oldest
    return possible


def steps_of(
    protocol: str,
    histories: Histories,
    cut: float,
    first: float,
    period_ms: int | None,
    periods: int = 10,
    own: Ints | None = None,
) -> Iterator[Step]:
    """The steps of one of PROTOCOLS. cut: see successive; the others: see period_moments. Raises ConfigError."""
    if protocol == "leave-one-out":
        return leave_one_out(histories)
    if protocol == "successive":
        return successive(histories, cut)
    return prequential(histories, period_moments(histories, first, period_ms, periods, own))


def leave_one_out(histories: Histories) -> Iterator[Step]:
    """One step. Users with fewer than two foreseeable events are learned whole and not tested."""
    place = np.flatnonzero(foreseeable(histories, None))
    owner = histories.first[place]
    same = owner[1:] == owner[:-1]
    chosen = np.flatnonzero(same & np.append(~same, True)[1:]) + 1
    test, check = place[chosen], place[chosen - 1]
    # What comes after the test event of a user, things shown but not chosen, is left out.
    kept = histories.keep(np.flatnonzero(_positions_up_to(histories, test + 1)))
    before_test = _positions_up_to(histories, test)
    learned = before_test[_positions_up_to(histories, test + 1)]
    known = histories.keep(np.flatnonzero(_positions_up_to(histories, check)))
    checked = histories.keep(np.flatnonzero(before_test))
    # An event keeps its distance to the beginning of its user.
    places = np.unique(kept.first)[_user_numbers(histories)[test]] + test - histories.first[test]
    check_places = np.unique(checked.first)[_user_numbers(histories)[check]] + check - histories.first[check]
    in_time = np.argsort(kept.event_time[places], kind="stable")
    yield Step(None, known, None, Check(checked, check_places), kept, places[in_time], learned, None)


def successive(histories: Histories, cut: float) -> Iterator[Step]:
    """One step that parts the events at the quantile `cut` of their times."""
    moment = _quantile(histories, cut)
    yield _step_at(histories, moment, None)


def prequential(histories: Histories, moments: Ints) -> Iterator[Step]:
    """One step for each period [moments[i], moments[i+1]) in which something can be foreseen. moments: ms, rising."""
    since = None
    for begins, ends in zip(moments[:-1].tolist(), moments[1:].tolist(), strict=True):
        step = _step_at(histories.before(ends), begins, histories.history, since)
        if len(step.places):
            yield step
            since = step.known_until_ms


def period_moments(histories: Histories, first: float, period_ms: int | None, periods: int, own: Ints | None) -> Ints:
    """The moments, ms, at which periods begin, and the end of the last one: int64[P+1].

    first: the periods begin at this quantile of the event times. period_ms: how long they are, counted from 1970 UTC;
    None = `periods` equally long ones. own: the moments at which the data's own periods begin; they win.
    """
    begin, end = _quantile(histories, first), int(histories.event_time.max()) + 1
    if own is not None:
        # A period that has begun before the quantile is learned whole; so is the very first one in any case.
        return np.append(own[(own >= begin) & (own > histories.event_time.min())], end)
    if period_ms is None:
        return np.linspace(begin, end, periods + 1).astype(np.int64)
    aligned = np.arange(begin // period_ms * period_ms, end, period_ms)
    # A rest of less than half a period joins the one before: it would tell little, and look like a fall.
    aligned = aligned[(aligned > histories.event_time.min()) & (aligned <= end - period_ms // 2)]
    return np.append(aligned, end)


def _step_at(histories: Histories, moment: int, masked: int | None, since: int | None = None) -> Step:
    before = histories.before(moment)
    if len(before) == 0:
        raise ConfigError("no event lies before the first moment to foresee", "begin later, or give more events")
    possible = foreseeable(histories, masked) & (histories.event_time >= moment)
    places = np.flatnonzero(possible)
    places = places[np.argsort(histories.event_time[places], kind="stable")]
    check_from = _check_begins(before, since)
    check_places = np.flatnonzero(foreseeable(before, masked) & (before.event_time >= check_from))
    known = before.before(check_from)
    usable = len(check_places) > 0 and len(known) > 0
    return Step(
        begins_ms=moment,
        known=known if usable else before,
        known_until_ms=check_from if usable else moment,
        check=Check(before, check_places) if usable else None,
        histories=histories,
        places=places,
        learned=histories.event_time < moment,
        masked=masked,
    )


def _check_begins(before: Histories, since: int | None) -> int:
    time = np.sort(before.event_time)
    new = len(time) if since is None else int((time >= since).sum())
    return int(time[-max(1, int(min(CHECK_SHARE * len(time), CHECK_SHARE_OF_NEW * new)))])


def _quantile(histories: Histories, share: float) -> int:
    if not 0 < share < 1:
        raise ConfigError(f"{share} is no share of the events", "give a number between 0 and 1, such as 0.9")
    time = np.sort(histories.event_time)
    return int(time[int(share * len(time))])


def _user_numbers(histories: Histories) -> Ints:
    number: Ints = np.cumsum(histories.first == np.arange(len(histories))) - 1
    return number


def _positions_up_to(histories: Histories, ends: Ints) -> NDArray[np.bool_]:
    """Which of the N events lie before the end of their user; ends: one place + at most 1 for some users."""
    end_of = np.full(len(histories) + 1, len(histories), np.int64)
    end_of[histories.first[ends - 1]] = ends
    mine: NDArray[np.bool_] = np.arange(len(histories)) < end_of[histories.first]
    return mine
