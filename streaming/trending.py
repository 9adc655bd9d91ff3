"""trending: windowed popularity over all users, in event time, for those whom no model can help.

Counts lie in hours. Each hour is one entry of the state; what came since an hour was last written lies in a list
of additions, so that a micro-batch costs one append and not a rewrite of its hour.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pyflink.common import Types
from pyflink.datastream import KeyedCoProcessFunction, RuntimeContext
from pyflink.datastream.state import ListState, ListStateDescriptor, MapState, MapStateDescriptor

from schemas.recommendation import LIST_LENGTH
from schemas.user_state import HISTORY, HOUR_MS
from streaming.metrics import Metrics

# A new list this often at most: it changes slowly, and it is sent to every scorer.
EVERY_MS = 2000
# After so many additions the hours are written anew and the list is emptied.
FOLD_AFTER = 512
# Long enough that LIST_LENGTH items are left after a user's own history was taken out.
KEPT_ITEMS = LIST_LENGTH + HISTORY

Addition = tuple[int, list[tuple[int, str, int]]]


class Trending(NamedTuple):
    """The most wanted items, best first, with their counts; event_time of the newest event, ms."""

    item_ids: list[str]
    counts: list[int]
    event_time: int


class CountTrending(KeyedCoProcessFunction):  # type: ignore[misc]
    """Counts on one side, items' availability on the other. Keyed by one constant: one subtask sees all."""

    def __init__(self, hours: int) -> None:
        self._window = hours

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        self._hours: MapState = runtime_context.get_map_state(
            MapStateDescriptor("hours", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        )
        self._additions: ListState = runtime_context.get_list_state(
            ListStateDescriptor("additions", Types.PICKLED_BYTE_ARRAY())
        )
        self._gone_state: MapState = runtime_context.get_map_state(
            MapStateDescriptor("gone", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        )
        self._metrics = Metrics(runtime_context, "trending").declare(["lists"], ["items"])
        # A view of the state, rebuilt from it after a restart; nothing here is not in the state.
        self._by_hour: dict[int, Counter[str]] | None = None
        self._totals: Counter[str] = Counter()
        self._gone: set[str] = set()
        self._newest = 0
        self._unfolded = 0
        self._timer_set = False
        self._listed = False

    def process_element1(self, value: Addition, ctx: KeyedCoProcessFunction.Context) -> Iterable[Any]:
        """Counts of one micro-batch in; the first list out at once, later ones by timer."""
        if self._by_hour is None:
            self._rebuild()
        self._additions.add(value)
        self._count(value)
        self._unfolded += 1
        if self._unfolded >= FOLD_AFTER:
            self._fold()
        if not self._listed and self._totals:
            self._listed = True
            yield self._list()
        else:
            self._list_soon(ctx)

    def process_element2(self, value: Mapping[str, bool], ctx: KeyedCoProcessFunction.Context) -> Iterable[Any]:
        """Items by whether they may be shown; the list follows by timer."""
        if self._by_hour is None:
            self._rebuild()
        for item, available in value.items():
            if available and item in self._gone:
                self._gone.discard(item)
                self._gone_state.remove(item)
            elif not available and item not in self._gone:
                self._gone.add(item)
                self._gone_state.put(item, True)
        self._list_soon(ctx)
        yield from ()

    def _list_soon(self, ctx: KeyedCoProcessFunction.Context) -> None:
        if self._timer_set:
            return
        self._timer_set = True
        service = ctx.timer_service()
        service.register_processing_time_timer(service.current_processing_time() + EVERY_MS)

    def on_timer(self, timestamp: int, ctx: KeyedCoProcessFunction.OnTimerContext) -> Iterable[Any]:
        """The list with all that came since the last one."""
        if self._by_hour is None:
            self._rebuild()
        self._timer_set = False
        if self._totals:
            yield self._list()

    def _list(self) -> Trending:
        self._expire()
        # Ties are broken by id, so that equal counts give one list everywhere.
        shown = ((item, count) for item, count in self._totals.items() if item not in self._gone)
        best = heapq.nsmallest(KEPT_ITEMS, shown, key=lambda entry: (-entry[1], entry[0]))
        self._metrics.add(lists=1)
        self._metrics.set(items=len(self._totals))
        return Trending([item for item, _ in best], [count for _, count in best], self._newest)

    def _count(self, addition: Addition) -> None:
        newest, counts = addition
        self._newest = max(self._newest, newest)
        oldest = self._newest // HOUR_MS - self._window
        assert self._by_hour is not None
        for hour, item, count in counts:
            if hour > oldest:
                self._by_hour.setdefault(hour, Counter())[item] += count
                self._totals[item] += count

    def _expire(self) -> None:
        """Take out of the totals what has left the window."""
        assert self._by_hour is not None
        oldest = self._newest // HOUR_MS - self._window
        for hour in [hour for hour in self._by_hour if hour <= oldest]:
            self._totals.subtract(self._by_hour.pop(hour))
        self._totals += Counter()  # drops what is at zero

    def _fold(self) -> None:
        """Write the hours that the additions touched, drop the ones outside the window, empty the list."""
        self._expire()
        assert self._by_hour is not None
        touched = {hour for _, counts in self._additions for hour, _, _ in counts}
        # The newest hour is written in any case: it carries the newest event time over a restart.
        touched.add(max(self._by_hour, default=0))
        for hour in touched & self._by_hour.keys():
            self._hours.put(hour, (self._newest, dict(self._by_hour[hour])))
        for hour in [hour for hour in list(self._hours.keys()) if hour not in self._by_hour]:
            self._hours.remove(hour)
        self._additions.clear()
        self._unfolded = 0

    def _rebuild(self) -> None:
        self._by_hour = {}
        self._gone = set(self._gone_state.keys())
        for hour, (newest, counts) in list(self._hours.items()):
            self._by_hour[hour] = Counter(counts)
            self._totals.update(counts)
            self._newest = max(self._newest, newest)
        for addition in list(self._additions):
            self._count(addition)
            self._unfolded += 1
