"""trending: windowed popularity over all users, in event time, for those whom no model can help.

Counts lie in hours. Each hour is one entry of the state; what came since the hours were last written lies in a list of
additions, so that a micro-batch costs one append and not a rewrite of its hour.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pyflink.common import Types
from pyflink.datastream import KeyedCoProcessFunction, RuntimeContext
from pyflink.datastream.state import ListState, ListStateDescriptor, MapState, MapStateDescriptor

from schemas.recommendation import LIST_LENGTH
from schemas.user_state import HISTORY
from streaming.metrics import Metrics
from streaming.popularity import Addition, OlderAddition, Popularity

# A new list this often at most: it changes slowly, and it is sent to every scorer.
EVERY_MS = 2000
# After so many additions, and no fewer counts than the hours hold that they touched, these hours are written anew and
# the list is emptied. Fewer: more writing. More: a longer list to read after a restart.
FOLD_AFTER = 512
# Long enough that LIST_LENGTH items are left after a user's own history was taken out.
KEPT_ITEMS = LIST_LENGTH + HISTORY


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
        # Views of the state, made from it after a restart; nothing here is not in the state.
        self._popularity: Popularity | None = None
        self._gone: set[str] = set()
        self._unfolded = 0
        self._timer_set = False
        self._listed = False

    def process_element1(
        self, value: Addition | OlderAddition, ctx: KeyedCoProcessFunction.Context
    ) -> Iterable[Trending]:
        """Counts of one micro-batch in; the first list out at once, later ones by timer."""
        popularity = self._counted()
        self._additions.add(value)
        popularity.add(value)
        self._unfolded += 1
        if self._unfolded % FOLD_AFTER == 0 and popularity.worth_folding():
            popularity.fold()
            self._additions.clear()
            self._unfolded = 0
        if not self._listed and popularity:
            self._listed = True
            yield self._list(popularity)
        else:
            self._list_soon(ctx)

    def process_element2(self, value: Mapping[str, bool], ctx: KeyedCoProcessFunction.Context) -> Iterable[Any]:
        """Items by whether they may be shown; the list follows by timer."""
        self._counted()
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
        popularity = self._counted()
        self._timer_set = False
        if popularity:
            yield self._list(popularity)

    def _list(self, popularity: Popularity) -> Trending:
        item_ids, counts = popularity.best(KEPT_ITEMS, self._gone)
        self._metrics.add(lists=1)
        self._metrics.set(items=len(popularity))
        return Trending(item_ids, counts, popularity.newest)

    def _counted(self) -> Popularity:
        """What the state holds: the first element brings the key under which it lies."""
        if self._popularity is None:
            self._popularity = Popularity(self._window, self._hours)
            self._gone = set(self._gone_state.keys())
            for addition in self._additions:
                self._popularity.add(addition)
                self._unfolded += 1
        return self._popularity
