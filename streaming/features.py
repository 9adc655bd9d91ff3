"""features: decode a micro-batch and bring its users' state up to date.

For one micro-batch, all of one shard:
    1. decode; what cannot be used goes to the dead letters
    2. forget users whose erasure is in it
    3. read each user's state once, add the events, write it once
    4. pass the states on to be scored, and the items' counts on to trending
While it is behind, users wait with step 4 until it has caught up (waiting.py).
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, OutputTag, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor

from schemas.avro import BadRecord
from schemas.click import ACTIONS, Clicks, decode_clicks, latest
from schemas.compiled import prepare
from schemas.erasure import decode_erasure
from schemas.hashes import distinct
from schemas.user_state import HOUR_MS, apply_events, dump_states, load_states, select
from streaming.batch import Records, records_of
from streaming.config import Settings, job_version
from streaming.dead_letter import letters
from streaming.lag import Lag
from streaming.metrics import Metrics
from streaming.popularity import Addition
from streaming.registry import registry
from streaming.stamps import attempt_tag, delete_stamp, next_stamps, retagged
from streaming.users import Users
from streaming.waiting import HOLD_MS, LOOK_MS, Hold, Waiting

log = logging.getLogger("features")

# (a key that is the same for all, Addition)
POPULARITY = OutputTag("popularity", Types.ROW([Types.INT(), Types.PICKLED_BYTE_ARRAY()]))
# Kinds of records: the order of Settings.event_topics.
CLICK, ERASURE = 0, 1
# So many users are updated at a time: their states, 1.6 KB each in memory, stay in a core's cache.
BLOCK = 256
_NONE = np.zeros(0, np.int64)
# An odd number with about half its bits set.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
# Actions that say an item is wanted.
_WANTED = np.array([action not in ("DISLIKE", "IMPRESSION") for action in ACTIONS])


class Updated(NamedTuple):
    """A micro-batch after `features`: U users with their states.

    records: their states, as kept. erased: (user id, write time µs) of rows to delete.
    produced: int64[N], when the events that changed these users were produced, ms.
    """

    user_ids: list[str]
    records: list[bytes]
    erased: list[tuple[str, int]]
    produced: NDArray[np.int64]


class Features(KeyedProcessFunction):  # type: ignore[misc]
    """Keyed by shard; the state of each user lies in a map under the user's id."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topics = settings.event_topics

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        prepare()
        self._users = Users(
            runtime_context.get_map_state(MapStateDescriptor("users", Types.STRING(), Types.PICKLED_BYTE_ARRAY()))
        )
        self._waiting_state = runtime_context.get_map_state(
            MapStateDescriptor("waiting", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        )
        # By shard; made from the state when its key is first met.
        self._waiting: dict[int, Waiting] = {}
        self._hold = Hold(2 * self._settings.streaming.window_ms)
        self._lag = Lag(self._settings)
        self._tag = attempt_tag()
        self._version = job_version()
        self._registry = registry(self._settings.kafka.schema_registry_url)
        self._metrics = Metrics(runtime_context, "features").declare(
            counters=[
                "records",
                "events",
                "duplicates",
                "late",
                "waited",
                "dead_letters",
                "erasures",
                "forgotten",
                "batches",
                "decode_us",
                "state_us",
                "update_us",
            ],
            values=["batch_size", "waiting"],
        )

    def close(self) -> None:
        """Called by Flink when the task ends."""
        self._lag.close()

    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        """One micro-batch in, one `Updated` out, with dead letters and popularity beside it."""
        started = time.perf_counter()
        records = records_of(value)
        clicks, erasures, bad = self._decode(records, int(time.time() * 1000))
        read = len(clicks)
        if erasures:
            clicks = _without_forgotten(clicks, erasures)
        decoded = time.perf_counter()
        yield from letters(records, self._topics, bad, self._version)
        erased = self._forget(erasures, records)
        self._metrics.add(
            records=len(records.keys),
            batches=1,
            dead_letters=len(bad),
            erasures=len(erasures),
            forgotten=read - len(clicks),
            decode_us=int((decoded - started) * 1e6),
        )
        self._metrics.set(batch_size=len(records.keys))
        if not len(clicks):
            if erased:
                yield Updated([], [], list(erased.items()), _NONE)
            return
        updated, fresh, owner = self._update(clicks, records, erased)
        if len(fresh):
            yield POPULARITY, Row(0, _popularity(fresh))
        behind = self._lag.behind(records.kinds[-1], records.partitions[-1], records.offsets[-1])
        waiting = self._waiting_in(ctx)
        held = any(self._waiting.values())
        if behind:
            self._hold.old_came(time.monotonic())
        if not (behind or held):
            if updated.user_ids or updated.erased:
                yield updated
            return
        if erased:
            yield Updated([], [], list(erased.items()), _NONE)
        if updated.user_ids:
            if not held:
                log.warning("features: is behind: states first, rows within %d s", HOLD_MS // 1000)
            if not waiting:
                _look(waiting, ctx)
            waiting.add(updated.user_ids, np.unique(owner, return_inverse=True)[1], updated.produced)
            self._metrics.add(waited=len(owner))
            self._metrics.set(waiting=sum(map(len, self._waiting.values())))

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Updated]:
        """Rows of some who waited, when it is time."""
        waiting = self._waiting_in(ctx)
        if waiting.rings != timestamp:
            return
        late_ms = int(time.time() * 1000) - timestamp
        if not self._going() and self._hold.over(time.monotonic(), late_ms):
            for shard in self._waiting.values():
                shard.go()
        if waiting is self._going():
            users, produced = waiting.take()
            kept = dict(zip(users, self._users.read(users), strict=True))
            users = [user for user, record in kept.items() if record is not None]  # else erased meanwhile
            states = load_states([kept[user] for user in users])
            # An attempt that ended before its checkpoint may have written the same rows.
            states["last_write"] = retagged(states["last_write"], self._tag)
            yield Updated(users, dump_states(states), [], produced)
            self._metrics.set(waiting=sum(map(len, self._waiting.values())))
        if waiting:
            _look(waiting, ctx, 0 if waiting is self._going() else LOOK_MS)
        else:
            waiting.rings = None

    def _going(self) -> Waiting | None:
        """The shard whose rows are being made: one at a time, or micro-batches would wait for a piece of each."""
        return next((shard for shard in self._waiting.values() if shard.going), None)

    def _waiting_in(self, ctx: KeyedProcessFunction.Context) -> Waiting:
        shard = ctx.get_current_key()
        if shard not in self._waiting:
            self._waiting[shard] = Waiting(self._waiting_state)
            if self._waiting[shard]:
                log.warning("features: %d users of shard %d have waited since before", len(self._waiting[shard]), shard)
                _look(self._waiting[shard], ctx)
        return self._waiting[shard]

    def _decode(self, records: Records, now_ms: int) -> tuple[Clicks, dict[str, int], list[BadRecord]]:
        """Clicks, the place of each user's last erasure, and bad records."""
        times = latest(now_ms, records.times)
        if not any(records.kinds):
            clicks, bad = decode_clicks(records.values, records.keys, times, self._registry)
            return clicks, {}, bad
        chosen = [p for p, kind in enumerate(records.kinds) if kind == CLICK]
        values, keys = [records.values[p] for p in chosen], [records.keys[p] for p in chosen]
        places = np.array(chosen, np.int64)
        clicks, bad = decode_clicks(values, keys, times[places], self._registry)
        clicks = replace(clicks, positions=places[clicks.positions])
        bad = [BadRecord(chosen[b.position], b.reason, b.detail) for b in bad]
        erasures: dict[str, int] = {}
        for place, kind in enumerate(records.kinds):
            if kind == ERASURE:
                user = decode_erasure(records.values[place], records.keys[place], place, self._registry)
                if isinstance(user, BadRecord):
                    bad.append(user)
                else:
                    erasures[user] = place
        return clicks, erasures, bad

    def _forget(self, erasures: dict[str, int], batch: Records) -> dict[str, int]:
        """Drop the state of erased users; returns the write time of each one's delete."""
        erased = {}
        for (user, place), record in zip(erasures.items(), self._users.read(list(erasures)), strict=True):
            last = int(load_states([record])["last_write"][0]) if record is not None else 0
            erased[user] = delete_stamp(last, batch.times[place], self._tag)
            self._users.forget(user)
        return erased

    def _update(
        self, clicks: Clicks, batch: Records, erased: dict[str, int]
    ) -> tuple[Updated, Clicks, NDArray[np.int64]]:
        """Read, update and write the states of these clicks' users.

        Returns also the N clicks that were new, and whose they are: int64[N] that orders their users as Updated does.
        """
        started = time.perf_counter()
        first, user_index = distinct(clicks.user_hash)
        user_ids = clicks.texts(clicks.user, first)
        kept = self._users.read(user_ids)
        got = time.perf_counter()
        produced = np.array(batch.times, np.int64)[clicks.positions]
        fresh, late = np.ones(len(clicks), np.bool_), 0
        records: dict[str, bytes] = {}
        for start, members in _blocks(user_index, len(first)):
            users = user_ids[start : start + BLOCK]
            states = load_states(kept[start : start + BLOCK])
            for index, user in enumerate(users if erased else ()):
                if user in erased:
                    states["last_write"][index] = erased[user]
            owners = user_index[members] - start
            applied = apply_events(states, owners, clicks if len(members) == len(clicks) else clicks.select(members))
            fresh[members] = ~applied.duplicate
            late += int(applied.late.sum())
            new = ~applied.duplicate
            states["last_write"] = next_stamps(states["last_write"], owners[new], produced[members[new]], self._tag)
            if not new.all():
                changed = np.unique(owners[new])
                states, users = select(states, changed), [users[i] for i in changed.tolist()]
            records.update(zip(users, dump_states(states), strict=True))
        updated = time.perf_counter()
        self._users.write(records)
        done = time.perf_counter()
        accepted = clicks if fresh.all() else clicks.select(fresh)
        self._metrics.add(
            events=len(accepted),
            duplicates=len(clicks) - len(accepted),
            late=late,
            state_us=int((got - started + done - updated) * 1e6),
            update_us=int((updated - got) * 1e6),
        )
        gone = [(user, when) for user, when in erased.items() if user not in records]
        return Updated(list(records), list(records.values()), gone, produced[fresh]), accepted, user_index[fresh]


def _look(waiting: Waiting, ctx: KeyedProcessFunction.Context, after_ms: int = LOOK_MS) -> None:
    """Let `on_timer` be called for the current shard, whose users wait."""
    service = ctx.timer_service()
    waiting.rings = service.current_processing_time() + after_ms
    service.register_processing_time_timer(waiting.rings)


def _blocks(user_index: NDArray[np.int64], users: int) -> Iterable[tuple[int, NDArray[np.int64]]]:
    """Users in blocks, by the number of the first one, each with the places of its events in their order."""
    if users <= BLOCK:
        yield 0, np.arange(len(user_index))
        return
    order = np.argsort(user_index, kind="stable")
    starts = range(0, users, BLOCK)
    edges = np.searchsorted(user_index[order], [*starts, users])
    for start, begin, end in zip(starts, edges, edges[1:], strict=False):
        yield start, np.sort(order[begin:end])


def _without_forgotten(clicks: Clicks, erasures: dict[str, int]) -> Clicks:
    """Drop the clicks that came before their user's erasure in the same micro-batch."""
    erased_at = np.array([erasures.get(user, -1) for user in clicks.user_ids], np.int64)
    return clicks.select(clicks.positions > erased_at)


def _popularity(clicks: Clicks) -> Addition:
    """The newest event time, and how often each item was wanted in each hour."""
    wanted = np.flatnonzero(_WANTED[clicks.action])
    hours = clicks.event_time[wanted] // HOUR_MS
    # Nearly always all are of one hour; items of other hours get other numbers.
    pairs = clicks.item_hash[wanted] ^ (hours.astype(np.uint64) * _SPREAD)
    first, which = distinct(pairs)
    counts = np.bincount(which, minlength=len(first))
    items = clicks.texts(clicks.item, wanted[first])
    newest = int(clicks.event_time.max(initial=0))
    return newest, hours[first].tolist(), items, counts.tolist()
