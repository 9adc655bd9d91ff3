"""Load that nobody planned: a user who is half of everybody, an idle partition, ten times as much, wrong clocks."""

import dataclasses
import random
import time
from collections.abc import Iterable, Iterator
from itertools import count

import pytest

from schemas.click import ACTIONS, Click, encode_click
from schemas.topics import CLICKS
from tests.harness import RunningJob
from tests.traffic import FIRST, ITEM_IDS, make_clicks, told
from tests.trial import LONGEST_S, PER_SECOND, USERS, Trial, note

HOUR_MS = 3_600_000
TIMES_TEN_S = 300.0
# The trial's own clicks go on for so long behind it.
AFTER_S = 100.0


def clicks_of(seed: str, users: Iterable[str], amount: int) -> Iterator[Click]:
    """Clicks of these users in their order, a second of event time apart, up to now."""
    choose = random.Random(seed)
    now = int(time.time() * 1000)
    for number, user in zip(range(amount), users, strict=False):
        when = now - (amount - number) * 1000
        yield Click(f"{seed}-{number}", user, choose.choice(ITEM_IDS), when, choose.choice(ACTIONS))


@pytest.mark.long
def test_a_user_who_makes_half_of_all_events_harms_nobody(job: RunningJob) -> None:
    """The oracle judges the busy user's 50 last events and all counters, too."""
    users = (f"half-{number // 2 % 100}" if number % 2 else "half-busy" for number in count())
    clicks = clicks_of("half", users, LONGEST_S * PER_SECOND)
    with Trial(job, "one user makes half of all events", clicks=clicks):
        time.sleep(8)


@pytest.mark.long
def test_an_idle_partition_holds_nobody_up(job: RunningJob) -> None:
    with Trial(job, "one of two partitions idle", clicks=clicks_of("idle", _of_one_partition(job), 200 * PER_SECOND)):
        time.sleep(8)


@pytest.mark.long
def test_ten_times_the_load_for_a_while_makes_rows_late_and_nothing_else(job: RunningJob) -> None:
    extra = make_clicks("ten", int(TIMES_TEN_S * PER_SECOND * 9), users=2000)
    clicks = make_clicks("ten-steady", int((TIMES_TEN_S + AFTER_S) * PER_SECOND), USERS)
    with Trial(job, f"ten times the load for {TIMES_TEN_S:.0f} s", clicks=clicks):
        job.click(extra, per_second=PER_SECOND * 9)
    job.agree(told(extra), FIRST, users=[f"ten-user-{number}" for number in range(0, 2000, 20)])


def test_producers_whose_clocks_are_an_hour_off_lose_no_event_and_take_no_row_back(job: RunningJob) -> None:
    """Records of one user from three producers: one an hour behind, one an hour ahead, one right."""
    clicks = []
    seen: dict[str, int] = {}
    topic = job.settings.topic(CLICKS)
    for number, click in enumerate(clicks_of("clocks", (f"clock-{number % 5}" for number in count()), 300)):
        # As far ahead as brokers let a record be is an hour.
        skew = (-HOUR_MS, HOUR_MS - 60_000, 0)[number // 7 % 3]
        told_by_it = dataclasses.replace(click, event_time=click.event_time + skew)
        produced = int(time.time() * 1000) + skew
        job.producer.produce(topic, encode_click(told_by_it), click.user_id.encode(), timestamp=produced)
        clicks.append(told_by_it)
        if number % 20 == 0:
            job.producer.flush()
            row = job.row(click.user_id)
            if row is not None:
                assert row.event_time >= seen.get(click.user_id, 0), "a row went back"
                seen[click.user_id] = row.event_time
    job.producer.flush()
    job.agree(told(clicks), FIRST)
    note("producers' clocks an hour behind and an hour ahead")


def _of_one_partition(job: RunningJob) -> Iterator[str]:
    """Users that all lie in the same partition as `idle-0`, found by dead letters."""
    first: int | None = None
    users: list[str] = []
    number = 0
    while len(users) < 20:
        user = f"idle-{number}"
        partition, _ = job.send(CLICKS, user.encode(), b"where does this key lie?")
        first = partition if first is None else first
        if partition == first:
            users.append(user)
        number += 1
    for number in count():
        yield users[number % len(users)]
