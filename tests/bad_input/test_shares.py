"""However many of the records are bad, the good ones end in the state as if they had been alone, and all are counted.

The operators as the job runs them, with states and counters in memory.
"""

import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from pyflink.common import Row

from schemas.click import Click, encode_click
from schemas.dead_letter import KEPT_BYTES, DeadLetter, decode_dead_letter
from schemas.features import counters
from schemas.signing import Trust
from schemas.user_state import HISTORY, dump_states, history, load_states
from streaming.control import Announced, Availability
from streaming.dead_letter import DEAD_LETTERS
from tests.bad_input.cases import ERASURES, ITEM, ITEMS, RELEASE, RELEASES, Case, events
from tests.oracle import Oracle
from tests.traffic import make_clicks, told
from tests.unit.streaming.test_control import Gate
from tests.unit.streaming.test_features import CLICK, ERASURE, Job, record
from tests.unit.streaming.test_metrics import Counted

Record = tuple[bytes | None, bytes | None, int]
# Records of one micro-batch; what a window holds while the job keeps up.
BATCH = 500


def letters(out: Sequence[object]) -> list[DeadLetter]:
    """The dead letters among what an operator put out, as their reader finds them."""
    rows = [pair[1] for pair in out if isinstance(pair, tuple) and pair[0] is DEAD_LETTERS]
    found = [decode_dead_letter(row[1]) for row in rows]
    assert all(isinstance(letter, DeadLetter) for letter in found), found
    return [letter for letter in found if isinstance(letter, DeadLetter)]


def counted(context: Counted, operator: str, *names: str) -> dict[str, int]:
    return {name: context.standing.get(f"{operator}_{name}", 0) for name in names}


def states_of(job: Job) -> dict[str, bytes]:
    """What is kept of each user, without the time of the last write, which follows the clock."""
    kept = dict(job.context.kept)
    states = load_states(list(kept.values()))
    states["last_write"] = 0
    return dict(zip(kept, dump_states(states), strict=True))


def one_in(share: int, good: Sequence[Record], bad: Sequence[Record]) -> tuple[list[Record], list[int]]:
    """The good records with bad ones in turn among them, one in `share` of all; and where these lie."""
    mixed: list[Record] = []
    places = []
    left = iter(good)
    while True:
        if len(mixed) % share == share - 1:
            places.append(len(mixed))
            mixed.append(bad[len(places) % len(bad)])
        elif (following := next(left, None)) is not None:
            mixed.append(following)
        else:
            return mixed, places


@pytest.mark.parametrize("share", [100, 10], ids=["1 %", "10 %"])
def test_good_neighbours_are_unharmed_and_counts_are_exact(share: int) -> None:
    now_ms = int(time.time() * 1000)
    # Some come twice, some come last though they are the oldest: a duplicate and a late event are no bad ones.
    clicks = [Click(f"heavy-{n}", "heavy", "item", now_ms - n, "VIEW") for n in range(HISTORY)]
    clicks += make_clicks("shares", 4000, users=120)
    clicks += [click for click in clicks if click.user_id == "shares-user-7"]
    clicks += [Click(f"late-{n}", "heavy", "item", now_ms - 9_000 - n, "VIEW") for n in range(HISTORY)]
    good = [record(click) for click in clicks]
    bad = [(case.key, case.value, CLICK) for case in events(now_ms).values()]
    bad += [(case.key, case.value, ERASURE) for case in ERASURES.values()]
    mixed, places = one_in(share, good, bad)
    assert len(places) == pytest.approx(len(mixed) / share, abs=1)
    alone, together = Job(), Job()
    for start in range(0, len(good), BATCH):
        alone.take(good[start : start + BATCH])
    found: list[DeadLetter] = []
    for start in range(0, len(mixed), BATCH):
        found += [
            DeadLetter(**{**vars(letter), "offset": letter.offset + start})
            for letter in letters(together.take(mixed[start : start + BATCH]))
        ]
    assert states_of(together) == states_of(alone)
    names = ("records", "events", "duplicates", "late", "dead_letters", "erasures", "forgotten")
    count = counted(together.context, "features", *names)
    assert count == {
        **counted(alone.context, "features", *names),
        "records": len(mixed),
        "dead_letters": len(places),
    }
    scored = count["events"] - count["late"]
    assert count["records"] == scored + count["duplicates"] + count["late"] + count["dead_letters"]
    assert count["duplicates"] > 0 and count["late"] > 0
    # Each is at its place in the topic, with its own bytes.
    assert sorted(letter.offset for letter in found) == places
    for letter in found:
        key, value, kind = mixed[letter.offset]
        assert (letter.key, letter.value) == (key and key[:KEPT_BYTES], value and value[:KEPT_BYTES])
        assert letter.topic == ("clicks", "erasures")[kind]


def test_when_all_are_bad_nothing_else_comes_of_them() -> None:
    now_ms = int(time.time() * 1000)
    job = Job()
    for number in range(5):
        # Each time in another order.
        cases = list(events(now_ms).values())[number:] + list(events(now_ms).values())[:number]
        out = job.take([(case.key, case.value, CLICK) for case in cases])
        found = letters(out)
        assert len(out) == len(found) == len(cases)
        assert [letter.reason for letter in found] == [case.reason for case in cases]
    assert dict(job.context.kept) == {}
    read = 5 * len(events())
    assert counted(job.context, "features", "records", "events", "dead_letters") == {
        "records": read,
        "events": 0,
        "dead_letters": read,
    }


def test_bad_items_and_releases_leave_those_beside_them_as_they_are() -> None:
    gate = Gate(Trust())
    mixed: list[tuple[int, Case | None]] = []
    for kind, table in ((0, RELEASES), (1, ITEMS)):
        for case in table.values():
            mixed += [(kind, case), (kind, None)]
    good = ((b"v", RELEASE), (b"a", ITEM))
    pairs = [(case.key, case.value) if case else good[kind] for kind, case in mixed]
    keys, values = zip(*pairs, strict=True)
    kinds, count = tuple(kind for kind, _ in mixed), len(mixed)
    row = Row(keys, values, kinds, (0,) * count, tuple(range(count)), (0,) * count)
    out = list(gate.operator.process_element(row, None))
    found = letters(out)
    expected = [(place, case.reason) for place, (_, case) in enumerate(mixed) if case]
    assert sorted((letter.offset, letter.reason) for letter in found) == expected
    assert sum(isinstance(part, Announced) for part in out) == len(RELEASES)
    [availability] = [part for part in out if isinstance(part, Availability)]
    assert availability.available == {"a": True}
    assert counted(gate, "control", "releases", "items", "dead_letters") == {
        "releases": len(RELEASES),
        "items": 1,
        "dead_letters": len(expected),
    }


def test_no_dead_letter_is_too_large_for_the_broker_that_took_the_record() -> None:
    """A broker takes 1 MiB with its default; what it took once must not stop the job when it goes there again."""
    half = b"k" * (500 * 1024)
    out = Job().take([(half, half, CLICK), (half, encode_click(Click("e", "u", "i", 0)), CLICK), (half, None, ERASURE)])
    rows = [pair[1] for pair in out]
    assert len(rows) == 3
    for row in rows:
        assert len(row[0]) + len(row[1]) < 16 * 1024
    assert [letter.whole for letter in letters(out)] == [False, True, True]


def test_no_record_of_any_size_stops_a_micro_batch() -> None:
    now_ms = int(time.time() * 1000)
    for name, case in events(now_ms).items():
        job, took = Job(), []
        for _ in range(3):
            started = time.perf_counter()
            job.take([(case.key, case.value, CLICK)])
            took.append(time.perf_counter() - started)
        # A key of 500 KB took 0.7 s when each of its words was walked, a map of 30 720 entries as long.
        assert min(took) < 0.2, name


# ── much of the same ─────────────────────────────────────────────────────────────────────────────


def test_a_file_sent_twice_changes_nothing_that_the_ring_remembers() -> None:
    few, many = make_clicks("few", 400, users=20), make_clicks("many", 400, users=2)
    assert max(Counter(click.user_id for click in few).values()) <= HISTORY
    job = Job()
    batches = [[record(c) for c in part] for part in (few[:200], few[200:], many[:200], many[200:])]
    for batch in batches:
        job.take(batch)
    before = states_of(job)
    for batch in batches[:2]:
        assert job.take(batch) == [], "a user with nothing new is neither written nor scored"
    assert states_of(job) == before
    # Of users with more events than a ring holds, the older ones are not recognised: late, and counted once more.
    for batch in batches[2:]:
        job.take(batch)
    heavy = [user for user in before if user.startswith("many")]
    rings = [history(load_states([kept[user] for user in heavy]), "event") for kept in (before, states_of(job))]
    assert rings[0].tolist() == rings[1].tolist()
    count = counted(job.context, "features", "records", "events", "duplicates", "late", "dead_letters")
    forgotten = 400 - 2 * HISTORY
    assert count == {
        "records": 1600,
        "events": 800 + forgotten,
        "duplicates": 400 + 2 * HISTORY,
        "late": forgotten,
        "dead_letters": 0,
    }


def test_ten_thousand_events_a_second_of_one_user_are_taken_and_do_not_slow_the_job_down() -> None:
    now_ms = int(time.time() * 1000)
    clicks = [
        Click(f"flood-{n}", "one", f"item-{n % 90}", now_ms - 20_000 + n, ("VIEW", "CART")[n % 2])
        for n in range(20_000)
    ]
    others = make_clicks("beside", 500, users=50)
    oracle: Oracle = told([*clicks, *others])
    job = Job()
    seconds = []
    for second in range(2):
        batch = [record(c) for c in clicks[second * 10_000 : second * 10_000 + 10_000]]
        batch += [record(c) for c in others[second * 250 : second * 250 + 250]]
        started = time.perf_counter()
        out = job.take(batch)
        seconds.append(time.perf_counter() - started)
        assert letters(out) == []
    # What comes in a second is done in a fraction of one.
    assert min(seconds) < 0.5, seconds
    assert counted(job.context, "features", "events", "duplicates", "dead_letters") == {
        "events": 20_500,
        "duplicates": 0,
        "dead_letters": 0,
    }
    for user in ("one", *{click.user_id for click in others}):
        state = load_states([job.context.kept[user]])
        newest = [int(e) for e in history(state, "event")[0] if e]
        assert len(newest) == min(HISTORY, len(oracle.events[user]))
        assert [int(t) for t in history(state, "event_time")[0] if t] == [
            click.event_time for click in oracle.history(user)
        ]
        assert counters(state)[0] == pytest.approx(np.log1p(oracle.counters(user)), abs=1e-4)
