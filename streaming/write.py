"""write: rows into Cassandra, acknowledged before the micro-batch counts as done.

Rows of one replica set travel together in unlogged batches, several in flight. A checkpoint passes only after the
call has returned, so what a checkpoint covers is in Cassandra; what comes again after a restart is written again,
with a later write time.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from cassandra.cluster import ResponseFuture, Session
from pyflink.datastream import ProcessFunction, RuntimeContext

from schemas.errors import UnreachableError
from schemas.recommendation import (
    SOURCE_TRENDING,
    TRENDING_SCOPE,
    delete_statement,
    insert_statement,
    written_statement,
)
from streaming.config import DAY_S, Settings
from streaming.metrics import Freshness, Metrics
from streaming.rank import Fallback
from streaming.score import Rows
from streaming.table import check_tables, connect
from streaming.trending import Trending
from streaming.wire import DELETE_KEY, INSERT_KEY, Lists, delete_values, insert_values, value_at
from streaming.wire_batch import Statements, WireBatch, WireProtocol, fits

log = logging.getLogger("write")

# Cassandra refuses batches above 50 KiB (batch_size_fail_threshold); headers and ids want some room.
BATCH_BYTES = 40 * 1024
BATCH_ROWS = 100
# Fewer leave Cassandra waiting for us; more fill the socket, upon which the driver takes the server for dead.
IN_FLIGHT = 16
# A Cassandra that does not answer is tried again for so long; then the job restarts from its checkpoint.
RETRY_S = 60.0
RETRY_PAUSE_S = 0.5
# The longest pause in output is looked for in windows of this length.
PAUSE_WINDOW_S = 10.0


class Writer:
    """Writes rows whose values are in wire form, and deletes; every call returns after the last acknowledgement."""

    def __init__(self, settings: Settings, table: str) -> None:
        self._session: Session = connect(settings)
        check_tables(self._session, settings.keyspace)
        self._keyspace = settings.keyspace
        self._insert: bytes = self._session.prepare(insert_statement(self._keyspace, table)).query_id
        self._delete: bytes = self._session.prepare(delete_statement(self._keyspace)).query_id
        if fits(self._session.cluster.protocol_version, self._keyspace):
            self._session.client_protocol_handler = WireProtocol
        else:
            log.warning("write: this cassandra-driver takes no batches in wire form; rows go to it one by one")
        self.batches = 0

    def close(self) -> None:
        """Close the connections."""
        self._session.cluster.shutdown()

    def written(self, table: str, key: str) -> int:
        """When a row was written, µs by its writer; 0 where there is none."""
        row = self._session.execute(written_statement(self._keyspace, table), (key,)).one()
        return row.written if row is not None else 0

    def write(self, inserts: list[bytes], deletes: Sequence[tuple[str, int]] = ()) -> None:
        """Send and wait. inserts: values in wire form. deletes: key, write time in µs.

        Raises UnreachableError when Cassandra does not take them for RETRY_S.
        """
        pending: Iterable[WireBatch] = chain(
            self._batches(self._insert, inserts, INSERT_KEY),
            self._batches(self._delete, [delete_values(*delete) for delete in deletes], DELETE_KEY),
        )
        deadline = time.monotonic() + RETRY_S
        while True:
            taken, failed, reason = send(self._session, pending)
            self.batches += taken
            if not failed:
                return
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"Cassandra takes no rows ({reason})",
                    "see that it runs; the job goes on from its checkpoint",
                )
            log.warning("write: %d batches not taken (%s), trying again", len(failed), reason)
            time.sleep(RETRY_PAUSE_S)
            pending = failed

    def _batches(self, statement: bytes, rows: list[bytes], key_index: int) -> Iterator[WireBatch]:
        """Unlogged batches below Cassandra's size limit, each for one set of replicas."""
        tokens = self._session.cluster.metadata.token_map
        groups: dict[Any, list[bytes]] = {None: rows}
        if tokens is not None and len(self._session.cluster.metadata.all_hosts()) > 1:
            groups = {}
            for row in rows:
                token = tokens.token_class.from_key(value_at(row, key_index))
                groups.setdefault(tuple(tokens.get_replicas(self._keyspace, token)), []).append(row)
        for members in groups.values():
            start, size = 0, 0
            for end, row in enumerate(members):
                if end > start and (size + len(row) > BATCH_BYTES or end - start >= BATCH_ROWS):
                    yield self._batch(statement, members[start:end], key_index)
                    start, size = end, 0
                size += len(row)
            if members:
                yield self._batch(statement, members[start:], key_index)

    def _batch(self, statement: bytes, rows: list[bytes], key_index: int) -> WireBatch:
        return WireBatch(Statements(statement, rows), self._keyspace, value_at(rows[0], key_index))


def send(session: Session, batches: Iterable[WireBatch]) -> tuple[int, list[WireBatch], str]:
    """Send batches, IN_FLIGHT of them at a time, and wait for all: how many were taken, which were not, and why."""
    taken, reason = 0, ""
    failed: list[WireBatch] = []
    waiting: deque[tuple[WireBatch, ResponseFuture]] = deque()
    upcoming = iter(batches)
    while True:
        for batch in islice(upcoming, IN_FLIGHT - len(waiting)):
            waiting.append((batch, session.execute_async(batch)))
        if not waiting:
            return taken, failed, reason
        batch, future = waiting.popleft()
        try:
            future.result()
            taken += 1
        except Exception as error:  # timeouts, lost connections, overload: all are tried again
            failed.append(batch)
            reason = f"{type(error).__name__}: {error}"


class WriteRows(ProcessFunction):  # type: ignore[misc]
    """Rows of users."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        self._writer = Writer(self._settings, "recommendations")
        self._metrics = Metrics(runtime_context, "write").declare(
            ["rows", "deletes", "batches", "us"], ["longest_pause_ms"]
        )
        self._freshness = Freshness(runtime_context)
        self._acknowledged = self._window_started = time.monotonic()
        self._longest = self._longest_before = 0.0

    def close(self) -> None:
        """Called by Flink when the task ends."""
        self._writer.close()

    def process_element(self, value: Rows, ctx: ProcessFunction.Context) -> Iterable[Any]:
        """A micro-batch of rows in; nothing out, all of it acknowledged."""
        started = time.perf_counter()
        before = self._writer.batches
        self._writer.write(value.inserts, value.erased)
        self._freshness.count(value.produced)
        self._metrics.add(
            rows=len(value.inserts),
            deletes=len(value.erased),
            batches=self._writer.batches - before,
            us=int((time.perf_counter() - started) * 1e6),
        )
        self._note_pause()
        return ()

    def _note_pause(self) -> None:
        """The longest time between two acknowledgements, of this window and the one before."""
        now = time.monotonic()
        if now - self._window_started > PAUSE_WINDOW_S:
            self._window_started, self._longest_before, self._longest = now, self._longest, 0.0
        self._longest = max(self._longest, now - self._acknowledged)
        self._acknowledged = now
        self._metrics.set(longest_pause_ms=int(max(self._longest, self._longest_before) * 1000))


class WriteTrending(ProcessFunction):  # type: ignore[misc]
    """The row that readers show to users without one of their own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        self._writer = Writer(self._settings, "trending")
        self._ttl = self._settings.streaming.row_ttl_days * DAY_S
        # A clock that was ahead may have written it: what comes later must be later to Cassandra, too.
        self._last_us = self._writer.written("trending", TRENDING_SCOPE)

    def close(self) -> None:
        """Called by Flink when the task ends."""
        self._writer.close()

    def process_element(self, value: Trending, ctx: ProcessFunction.Context) -> Iterable[Any]:
        """A trending list in; nothing out."""
        now_us = time.time_ns() // 1000
        self._last_us = max(self._last_us + 1, now_us)
        item_ids, scores = Fallback(value, set()).lists(np.zeros((1, 0), np.uint64))
        lists = Lists(item_ids, scores, [SOURCE_TRENDING], [""])
        event_time, write_time = np.array([value.event_time]), np.array([self._last_us])
        self._writer.write(insert_values([TRENDING_SCOPE], lists, event_time, now_us // 1000, self._ttl, write_time))
        return ()
