"""A micro-batch through `features`: what is kept, what goes on, and that blocks of users make no difference."""

import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
from pyflink.common import Row

from schemas.click import ACTIONS, Click, encode_click
from schemas.user_state import history, load_states
from streaming import features
from streaming.config import Settings, StreamingSection
from streaming.dead_letter import DEAD_LETTERS
from streaming.features import POPULARITY, Features, Updated
from streaming.waiting import LOOK_MS
from tests.unit.streaming.test_metrics import Counted
from tests.unit.streaming.test_users import Kept

NOW_MS = int(time.time() * 1000)
CLICK, ERASURE = features.CLICK, features.ERASURE


class Context(Counted):
    """What Flink gives an operator, in memory: state by shard, and timers as (when it rings, ms; shard)."""

    def __init__(self) -> None:
        super().__init__()
        self.shard = 7
        self.states: dict[str, dict[int, Kept]] = {"users": {}, "waiting": {}}
        self.timers: list[tuple[int, int]] = []

    @property
    def kept(self) -> dict[str, bytes]:
        return {user: record for kept in self.states["users"].values() for user, record in kept.items()}

    @property
    def waiting(self) -> bool:
        return any(self.states["waiting"].values())

    def get_map_state(self, descriptor: Any) -> "OfShard":
        return OfShard(self, descriptor.name)

    def get_current_key(self) -> int:
        return self.shard

    def timer_service(self) -> "Context":
        return self

    def current_processing_time(self) -> int:
        return int(time.time() * 1000)

    def register_processing_time_timer(self, when: int) -> None:
        self.timers.append((when, self.shard))


class OfShard:
    """A map state: that of the shard at work."""

    def __init__(self, context: Context, name: str) -> None:
        self._context, self._name = context, name

    def __getattr__(self, method: str) -> Any:
        return getattr(self._context.states[self._name].setdefault(self._context.shard, Kept()), method)


class Late:
    """Whether what comes has waited in Kafka for long."""

    yes = False

    def __init__(self, _settings: Settings) -> None:
        pass

    def behind(self, _kind: int, _partition: int, _offset: int) -> bool:
        return self.yes


@pytest.fixture(autouse=True)
def late(monkeypatch: pytest.MonkeyPatch) -> type[Late]:
    monkeypatch.setattr(Late, "yes", False)
    monkeypatch.setattr(features, "Lag", Late)
    return Late


class Whim:
    """Holds back rows, or not, by chance. asked: how often it was, by all of them."""

    chance, asked = 0.0, 0

    def __init__(self, _quiet_ms: int) -> None:
        self._random = random.Random(3)

    def old_came(self, _now: float) -> None:
        pass

    def over(self, _now: float, _late_ms: int) -> bool:
        Whim.asked += 1
        return self._random.random() < self.chance


class Job:
    """The operator, opened. context: of a life before, with what it kept."""

    def __init__(self, context: Context | None = None, settings: Settings | None = None) -> None:
        self.context = context or Context()
        self.operator = Features(settings or Settings())
        self.operator.open(self.context)

    def ring(self, when: int, shard: int = 7) -> list[Updated]:
        """One timer."""
        self.context.shard = shard
        if (when, shard) in self.context.timers:
            self.context.timers.remove((when, shard))
        return list(self.operator.on_timer(when, self.context))

    def ring_all(self) -> list[Updated]:
        """All timers that are set, and those that are set by them; what was passed on meanwhile."""
        out: list[Updated] = []
        while due := [timer for timer in self.context.timers if timer[0] <= time.time() * 1000 + LOOK_MS]:
            out += self.ring(*due[0])
        return out

    def ring_all_once(self) -> list[Updated]:
        """Every timer that is set."""
        return [rows for timer in list(self.context.timers) for rows in self.ring(*timer)]

    def take(self, records: Sequence[tuple[bytes | None, bytes | None, int]], shard: int = 7) -> list[Any]:
        """A micro-batch of (key, value, kind)."""
        self.context.shard = shard
        keys, values, kinds = (tuple(column) for column in zip(*records, strict=True))
        count = len(records)
        row = Row(keys, values, kinds, (0,) * count, tuple(range(count)), (NOW_MS,) * count)
        return list(self.operator.process_element(row, self.context))


def record(click: Click) -> tuple[bytes, bytes, int]:
    return click.user_id.encode(), encode_click(click), CLICK


def some(seed: int, count: int, users: int) -> list[Click]:
    chance = random.Random(seed)
    return [
        Click(
            f"e{chance.randrange(count * 2)}",
            f"u{chance.randrange(users)}",
            f"i{chance.randrange(50)}",
            NOW_MS - chance.randrange(10_000_000),
            chance.choice(ACTIONS),
        )
        for _ in range(count)
    ]


def updated(out: list[Any]) -> Updated:
    [one] = [value for value in out if isinstance(value, Updated)]
    return one


@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_blocks_of_users_make_no_difference(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = some(1, 600, users=90)
    whole, parts = Job(), Job()
    for start in range(0, 600, 200):
        batch = [record(click) for click in clicks[start : start + 200]]
        monkeypatch.setattr(features, "BLOCK", 10_000)
        expected = updated(whole.take(batch))
        monkeypatch.setattr(features, "BLOCK", block)
        found = updated(parts.take(batch))
        assert found.user_ids == expected.user_ids
        assert found.produced.tolist() == expected.produced.tolist()
        # Write times follow the clock; all else is the same.
        for one, other in zip(load_states(found.records), load_states(expected.records), strict=True):
            other["last_write"] = one["last_write"]
            assert one == other
    assert parts.context.standing["features_duplicates"] == whole.context.standing["features_duplicates"] > 0
    assert parts.context.standing["features_late"] == whole.context.standing["features_late"]


def test_what_goes_on_is_what_is_kept() -> None:
    job = Job()
    out = updated(job.take([record(click) for click in some(2, 300, users=30)]))
    assert dict(job.context.kept) == dict(zip(out.user_ids, out.records, strict=True))


def test_a_write_time_only_ever_grows() -> None:
    job = Job()
    last = 0
    for number in range(5):
        out = updated(job.take([record(Click(f"e{number}", "ann", "i", NOW_MS))]))
        [write_time] = load_states(out.records)["last_write"].tolist()
        assert write_time > last
        last = write_time


def test_users_with_nothing_new_are_neither_written_nor_passed_on() -> None:
    job = Job()
    clicks = [record(Click(f"e{n}", f"u{n}", "i", NOW_MS)) for n in range(3)]
    job.take(clicks)
    before = dict(job.context.kept)
    assert job.take(clicks) == []
    assert dict(job.context.kept) == before
    again = updated(job.take([*clicks, record(Click("new", "u1", "i", NOW_MS))]))
    assert again.user_ids == ["u1"]


def test_bad_records_go_aside_and_their_neighbours_on() -> None:
    job = Job()
    good = record(Click("e", "ann", "i", NOW_MS))
    out = job.take([(b"bob", b"nonsense", CLICK), good, (b"cy", None, CLICK), (b"dan", good[1], CLICK)])
    assert [tag for tag, _ in (pair for pair in out if isinstance(pair, tuple) and pair[0] is DEAD_LETTERS)] == (
        [DEAD_LETTERS] * 3
    )
    assert updated(out).user_ids == ["ann"]


def test_an_erasure_forgets_what_came_before_it_and_not_what_comes_after() -> None:
    job = Job()
    job.take([record(Click("e1", "ann", "i1", NOW_MS)), record(Click("e1", "bob", "i1", NOW_MS))])
    before = load_states([job.context.kept["ann"]])["last_write"][0]
    out = updated(
        job.take(
            [
                record(Click("e2", "ann", "i2", NOW_MS)),
                (b"ann", None, ERASURE),
                record(Click("e3", "ann", "i3", NOW_MS)),
                (b"bob", None, ERASURE),
            ]
        )
    )
    assert (out.user_ids, [user for user, _ in out.erased]) == (["ann"], ["bob"])
    assert job.context.kept.keys() == {"ann"}
    state = load_states(out.records)
    assert (history(state, "item") != 0).sum() == 1
    assert state["last_write"][0] > before


def test_a_clock_that_is_behind_refuses_no_current_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records say themselves when they were produced; what is ahead of that is refused by any clock."""
    monkeypatch.setattr("time.time", lambda: NOW_MS / 1000 - 3600)
    ahead = record(Click("e2", "bob", "i", NOW_MS + 3_600_000))
    out = Job().take([(b"cy", None, ERASURE), record(Click("e1", "ann", "i", NOW_MS)), ahead])
    assert updated(out).user_ids == ["ann"]
    assert [pair[0] for pair in out if isinstance(pair, tuple)].count(DEAD_LETTERS) == 1


def test_popularity_counts_what_was_wanted_by_hour() -> None:
    hour = 3_600_000
    clicks = [
        Click("e1", "ann", "i1", NOW_MS),
        Click("e2", "bob", "i1", NOW_MS),
        Click("e3", "bob", "i1", NOW_MS - hour),
        Click("e4", "bob", "i2", NOW_MS, "DISLIKE"),
        Click("e5", "bob", "i2", NOW_MS, "IMPRESSION"),
        Click("e6", "bob", "i3", NOW_MS - hour),
    ]
    [[_, (newest, *columns)]] = [
        value._values for tag, value in Job().take([record(c) for c in clicks])[:-1] if tag is POPULARITY
    ]
    assert newest == NOW_MS
    assert sorted(zip(*columns, strict=True)) == sorted(
        [(NOW_MS // hour, "i1", 2), (NOW_MS // hour - 1, "i1", 1), (NOW_MS // hour - 1, "i3", 1)]
    )


def test_users_of_a_shard_that_is_behind_get_one_row_for_all_that_came(late: type[Late]) -> None:
    job = Job()
    late.yes = True
    for number in range(3):
        out = job.take([record(Click(f"{user}{number}", user, "i", NOW_MS)) for user in ("ann", "bob")])
        assert [tag for tag, _ in out] == [POPULARITY], "states and counts are kept up to date, rows wait"
    assert len(job.context.timers) == 1
    late.yes = False
    job.take([record(Click("c", "cy", "i", NOW_MS))])
    [rows] = job.ring_all()
    assert rows.user_ids == ["ann", "bob", "cy"]
    assert dict(zip(rows.user_ids, rows.records, strict=True)) == job.context.kept
    assert len(rows.produced) == 7
    assert (job.context.timers, job.context.waiting) == ([], False)
    assert updated(job.take([record(Click("d", "ann", "i", NOW_MS))])).user_ids == ["ann"], "no longer behind"
    late.yes = True
    job.take([record(Click("e", "ann", "i", NOW_MS))])
    assert [row.user_ids for row in job.ring_all()] == [["ann"]], "behind again: nothing else comes, so it goes"


def test_a_pause_between_two_long_windows_is_not_the_end_of_a_backlog(late: type[Late]) -> None:
    job = Job(settings=Settings(streaming=StreamingSection(freshness_ms=3000)))
    late.yes = True
    job.take([record(Click("a1", "ann", "i", NOW_MS))])
    time.sleep(2 * LOOK_MS / 1000)
    assert job.ring_all_once() + job.ring_all_once() == [], "the first look is late, the second in time"


def test_an_erasure_does_not_wait(late: type[Late]) -> None:
    job = Job()
    late.yes = True
    job.take([record(Click(f"{user}1", user, "i", NOW_MS)) for user in ("ann", "bob", "cy")])
    out = updated(job.take([(b"ann", None, ERASURE), (b"bob", None, ERASURE), record(Click("b2", "bob", "i", NOW_MS))]))
    assert (out.user_ids, [user for user, _ in out.erased]) == ([], ["ann", "bob"])
    late.yes = False
    job.take([record(Click("c2", "cy", "i", NOW_MS))])
    [rows] = job.ring_all()
    assert rows.user_ids == ["bob", "cy"], "who was erased has no row"
    written = dict(zip(rows.user_ids, load_states(rows.records)["last_write"].tolist(), strict=True))
    assert written["bob"] > dict(out.erased)["bob"], "what came after it is not taken away by it"


def test_a_restarted_job_makes_the_rows_that_waited_with_its_own_write_times(
    late: type[Late], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of one write time would be mixed by Cassandra, should a model have come in between."""
    before = Job()
    late.yes = True
    before.take([record(Click(f"{user}1", user, "i", NOW_MS)) for user in ("ann", "bob")])
    late.yes = False
    monkeypatch.setattr(features, "attempt_tag", lambda: before.operator._tag ^ 1)
    after = Job(before.context)
    [out] = after.ring_all()
    assert out.user_ids == ["ann", "bob"]
    for own, other in zip(load_states(out.records), load_states(list(before.context.kept.values())), strict=True):
        assert own["last_write"] != other["last_write"]
        own["last_write"] = other["last_write"]
        assert own == other


def after_the_clock_was_put_back(late: type[Late]) -> Job:
    """A job that goes on from one in which ann waited, whose timer rings in an hour; what comes is old."""
    before = Job()
    late.yes = True
    before.take([record(Click("a1", "ann", "i", NOW_MS))])
    before.context.timers[:] = [(NOW_MS + 3_600_000, 7)]
    return Job(before.context)


def test_a_timer_that_rings_an_hour_late_after_a_restart_holds_nobody_up(late: type[Late]) -> None:
    after = after_the_clock_was_put_back(late)
    after.take([record(Click("b1", "bob", "i", NOW_MS))])
    late.yes = False
    after.take([record(Click("a2", "ann", "i", NOW_MS))])
    [out] = after.ring_all()
    assert out.user_ids == ["ann", "bob"]
    assert after.ring(NOW_MS + 3_600_000) == [], "nothing is left for it"


def test_a_timer_of_a_former_life_does_not_ring_for_ours(late: type[Late]) -> None:
    before = Job()
    late.yes = True
    before.take([record(Click("a1", "ann", "i", NOW_MS))])
    [former] = before.context.timers
    before.context.timers[:] = []
    after = Job(before.context)
    after.take([record(Click("b1", "bob", "i", NOW_MS))])
    [own] = after.context.timers
    assert after.ring(former[0] - 1) == []
    assert after.context.timers == [own], "one timer for as long as somebody waits"


def test_whoever_waited_before_a_restart_gets_a_timer_with_the_first_micro_batch_whatever_is_in_it(
    late: type[Late],
) -> None:
    """Shards take turns: one without a timer would keep all others from theirs."""
    after = after_the_clock_was_put_back(late)
    after.take([record(Click("a1", "ann", "i", NOW_MS))])
    after.take([record(Click("b1", "bob", "i", NOW_MS))], shard=8)
    late.yes = False
    assert [rows.user_ids for rows in after.ring_all()] == [["ann"], ["bob"]]


def test_shards_of_an_operator_hold_back_and_go_together_one_at_a_time(
    late: type[Late], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.waiting.PIECE", 1)
    monkeypatch.setattr(features, "Hold", Whim)
    Whim.chance = 0.0
    job = Job()
    late.yes = True
    job.take([record(Click(f"{user}1", user, "i", NOW_MS)) for user in ("ann", "bob")], shard=1)
    late.yes = False
    out = job.take([record(Click(f"{user}1", user, "i", NOW_MS)) for user in ("cy", "dan")], shard=2)
    assert [tag for tag, _ in out] == [POPULARITY], "another shard of theirs is behind"
    began = job.context.current_processing_time()
    assert job.ring_all_once() == []
    assert all(when >= began + LOOK_MS for when, _ in job.context.timers), "they are looked at now and again"
    Whim.chance = 1.0
    (two, _) = job.context.timers[1]
    assert [rows.user_ids for rows in job.ring(two, 2)] == [], "it is the other one's turn"
    asked = Whim.asked
    job.take([record(Click("eve1", "eve", "i", NOW_MS))], shard=2)
    assert [rows.user_ids for rows in job.ring_all_once()] == [["ann"]]
    ended = job.context.current_processing_time()
    assert min(job.context.timers) <= (ended, 1), "the next piece is made at once"
    assert [rows.user_ids for rows in job.ring_all_once()] == [["bob"], ["cy"]]
    assert Whim.asked == asked, "what holds back the next ones begins after these"
    Whim.chance = 0.0
    assert [rows.user_ids for rows in job.ring_all_once()] == [["dan"]]
    assert job.ring_all_once() == [], "who came meanwhile waits for the next time"
    Whim.chance = 1.0
    assert [rows.user_ids for rows in job.ring_all_once()] == [["eve"]]
    assert (job.context.timers, job.context.waiting) == ([], False)


@pytest.mark.parametrize("seed", range(5))
def test_whoever_waits_however_long_no_write_time_comes_twice_and_the_last_row_is_the_state(
    seed: int, late: type[Late], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.waiting.PIECE", 4)
    monkeypatch.setattr(features, "Hold", Whim)
    Whim.chance = 0.3
    chance, job = random.Random(seed), Job()
    passed: list[tuple[str, bytes]] = []
    produced = 0
    for number in range(300):
        late.yes = chance.random() < 0.7
        shard = chance.randrange(3)
        batch = [
            record(Click(f"{number}-{place}", f"u{shard}-{chance.randrange(20)}", "i", NOW_MS))
            for place in range(chance.randrange(1, 12))
        ]
        out = [one for one in job.take(batch, shard) if isinstance(one, Updated)]
        if chance.random() < 0.5 and job.context.timers:
            out += job.ring(*chance.choice(job.context.timers))
        waiting = [shard for shard, kept in job.context.states["waiting"].items() if kept]
        assert sorted(shard for _, shard in job.context.timers) == sorted(waiting), "one timer where somebody waits"
        for one in out:
            passed += zip(one.user_ids, one.records, strict=True)
            produced += len(one.produced)
    late.yes = False
    for one in job.ring_all():
        passed += zip(one.user_ids, one.records, strict=True)
        produced += len(one.produced)
    stamps = [(user, int(load_states([one])["last_write"][0])) for user, one in passed]
    assert len(set(stamps)) == len(stamps)
    assert dict(passed) == job.context.kept
    assert produced == job.context.standing["features_events"]
    assert len(passed) < produced / 2, "many events met in one row"
