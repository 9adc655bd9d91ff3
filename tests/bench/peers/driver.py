"""The raw driver, as one uses it for many small rows: prepared, unlogged batches of some 100 rows, all in flight.

The bar for the job's `write`, and what the tuned consumer writes with.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from cassandra import ConsistencyLevel
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, ResponseFuture, Session
from cassandra.policies import DCAwareRoundRobinPolicy, TokenAwarePolicy
from cassandra.query import BatchStatement, BatchType, BoundStatement

from schemas.recommendation import insert_statement
from schemas.settings import CommonSettings

# Cassandra refuses a batch above 50 KiB; a row of 50 items has some 1.2 KiB, so bytes end a batch before rows do.
BATCH_BYTES, BATCH_ROWS = 40 * 1024, 100


def connect(settings: CommonSettings) -> Session:
    """A session with the settings that matter: no delayed ACKs, the coordinator that owns the row."""
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.cassandra.datacenter)),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        request_timeout=10.0,
    )
    return Cluster(
        settings.cassandra.hosts,
        port=settings.cassandra.port,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        sockopts=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    ).connect()


class RawDriver:
    """Writes rows whose values are in wire form: user id, COLUMNS, ttl, write time."""

    def __init__(self, settings: CommonSettings) -> None:
        self._session = connect(settings)
        self._insert = self._session.prepare(insert_statement(settings.keyspace, "recommendations"))

    def send(self, rows: Sequence[list[bytes]]) -> list[ResponseFuture]:
        """Send rows, all batches at once; each future's `result` waits for one acknowledgement.

        With one node every row has the same replicas: nothing to group by.
        """
        futures, batch, size = [], BatchStatement(BatchType.UNLOGGED), 0
        for values in rows:
            need = sum(map(len, values))
            if len(batch) and (len(batch) >= BATCH_ROWS or size + need > BATCH_BYTES):
                futures.append(self._session.execute_async(batch))
                batch, size = BatchStatement(BatchType.UNLOGGED), 0
            bound = BoundStatement(self._insert)
            bound.values = values
            batch.add(bound)
            size += need
        if len(batch):
            futures.append(self._session.execute_async(batch))
        return futures

    def write(self, rows: Sequence[list[bytes]]) -> None:
        """Send rows and wait for all of them. Raises what the driver raises."""
        for future in self.send(rows):
            future.result()

    def close(self) -> None:
        self._session.cluster.shutdown()
