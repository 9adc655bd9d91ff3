"""write: rows into Cassandra, acknowledged before the micro-batch counts as done.

Rows of one replica set travel together in unlogged batches, several in flight. A checkpoint passes only after the
call has returned, so what a checkpoint covers is in Cassandra; what comes again after a restart is written again,
with a later write time.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from cassandra.cluster import Session
from cassandra.marshal import int32_pack, int64_pack
from cassandra.query import BatchStatement, BatchType, BoundStatement, PreparedStatement
from pyflink.datastream import ProcessFunction, RuntimeContext

from schemas.errors import UnreachableError
from schemas.recommendation import (
    SOURCE_TRENDING,
    TRENDING_SCOPE,
    delete_statement,
    insert_statement,
)
from streaming.config import Settings
from streaming.metrics import Freshness, Metrics
from streaming.rank import Fallback
from streaming.score import Rows
from streaming.table import check_tables, connect
from streaming.trending import Trending

log = logging.getLogger("write")

# Cassandra refuses batches above 50 KiB (batch_size_fail_threshold); headers and ids want some room.
BATCH_BYTES = 40 * 1024
BATCH_ROWS = 100
# A Cassandra that does not answer is tried again for so long; then the job restarts from its checkpoint.
RETRY_S = 60.0
RETRY_PAUSE_S = 0.5
DAY_S = 24 * 3600
# The longest pause in output is looked for in windows of this length.
PAUSE_WINDOW_S = 10.0


class Writer:
    """Writes wire-form rows and deletes; every call returns after the last acknowledgement."""

    def __init__(self, settings: Settings) -> None:
        self._session: Session = connect(settings)
        check_tables(self._session, settings.keyspace)
        self._keyspace = settings.keyspace
        prepare = self._session.prepare
        self._insert = {t: prepare(insert_statement(self._keyspace, t)) for t in ("recommendations", "trending")}
        self._delete = prepare(delete_statement(self._keyspace))
        self._ttl = int32_pack(settings.streaming.row_ttl_days * DAY_S)
        self.batches = 0

    def close(self) -> None:
        """Close the connections."""
        self._session.cluster.shutdown()

    def row(self, table: str, key: str, columns: Sequence[bytes], write_time_us: int) -> BoundStatement:
        """An insert whose values are in wire form already: key, COLUMNS, ttl, write time."""
        return _bound(self._insert[table], [key.encode(), *columns, self._ttl, int64_pack(write_time_us)], 0)

    def delete(self, user_id: str, write_time_us: int) -> BoundStatement:
        """A delete of a user's row."""
        return _bound(self._delete, [int64_pack(write_time_us), user_id.encode()], 1)

    def write(self, statements: list[BoundStatement]) -> None:
        """Send and wait. Raises UnreachableError when Cassandra does not take them for RETRY_S."""
        pending = self._batches(statements)
        deadline = time.monotonic() + RETRY_S
        while pending:
            failed, reason = [], ""
            for batch, future in [(batch, self._session.execute_async(batch)) for batch in pending]:
                try:
                    future.result()
                    self.batches += 1
                except Exception as error:  # timeouts, lost connections, overload: all are tried again
                    failed.append(batch)
                    reason = f"{type(error).__name__}: {error}"
            if failed and time.monotonic() > deadline:
                raise UnreachableError(
                    f"Cassandra takes no rows ({reason})",
                    "see that it runs; the job goes on from its checkpoint",
                )
            if failed:
                log.warning("write: %d batches not taken (%s), trying again", len(failed), reason)
                time.sleep(RETRY_PAUSE_S)
            pending = failed

    def _batches(self, statements: list[BoundStatement]) -> list[BatchStatement]:
        """Unlogged batches below Cassandra's size limit, each for one set of replicas."""
        groups: dict[Any, list[BoundStatement]] = {}
        tokens = self._session.cluster.metadata.token_map
        one_node = tokens is None or len(self._session.cluster.metadata.all_hosts()) == 1
        for statement in statements:
            group: Any = None
            if not one_node:
                token = tokens.token_class.from_key(statement.routing_key)
                group = tuple(tokens.get_replicas(self._keyspace, token))
            groups.setdefault(group, []).append(statement)
        batches = []
        for members in groups.values():
            batch, size = BatchStatement(BatchType.UNLOGGED), 0
            for statement in members:
                need = sum(map(len, statement.values))
                if len(batch) and (size + need > BATCH_BYTES or len(batch) >= BATCH_ROWS):
                    batches.append(batch)
                    batch, size = BatchStatement(BatchType.UNLOGGED), 0
                batch.add(statement)
                size += need
            batches.append(batch)
        return batches


def _bound(statement: PreparedStatement, values: list[bytes], key_place: int) -> BoundStatement:
    bound = BoundStatement(statement)
    bound.values = values
    bound._routing_key = values[key_place]
    return bound


class WriteRows(ProcessFunction):  # type: ignore[misc]
    """Rows of users."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        self._writer = Writer(self._settings)
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
        scored_at = int64_pack(int(time.time() * 1000))
        lists = value.lists
        statements = [
            self._writer.row(
                "recommendations",
                user,
                (ids, scores, source.encode(), version.encode(), int64_pack(event_time), scored_at),
                write_time,
            )
            for user, ids, scores, source, version, event_time, write_time in zip(
                value.user_ids, *lists, value.event_time, value.write_time, strict=True
            )
        ]
        statements += [self._writer.delete(user, when) for user, when in value.erased]
        before = self._writer.batches
        self._writer.write(statements)
        self._freshness.count(value.produced)
        self._metrics.add(
            rows=len(value.user_ids),
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
        self._writer = Writer(self._settings)

    def close(self) -> None:
        """Called by Flink when the task ends."""
        self._writer.close()

    def process_element(self, value: Trending, ctx: ProcessFunction.Context) -> Iterable[Any]:
        """A trending list in; nothing out."""
        now_us = time.time_ns() // 1000
        (item_ids,), (scores,) = Fallback(value, set()).lists(np.zeros((1, 0), np.uint64))
        columns = (
            item_ids,
            scores,
            SOURCE_TRENDING.encode(),
            b"",
            int64_pack(value.event_time),
            int64_pack(now_us // 1000),
        )
        self._writer.write([self._writer.row("trending", TRENDING_SCOPE, columns, now_us)])
        return ()
