"""batch: one row per shard and window of some milliseconds, made in the JVM: the micro-batch.

A user's records share a shard, so they stay in order and meet one state. Under backlog the windows fill by themselves.
"""

import re
from typing import Any, NamedTuple

from pyflink.common import Row, Types
from pyflink.java_gateway import get_gateway
from pyflink.table import StreamTableEnvironment, Table

# Flink's key groups: more than the largest parallelism, few enough that each costs nothing.
MAX_PARALLELISM = 128


# The columns of a micro-batch as SQL hands them over, each an array with one entry a record. One array of rows would be
# simpler, but Flink 2.2 fills it with the same row over and over: ARRAY_AGG keeps references into a buffer that the
# window reuses. Numbers and byte arrays are copied, rows and strings are not; so the topic is a number, too.
COLUMNS = {
    "keys": Types.PRIMITIVE_ARRAY(Types.BYTE()),
    "contents": Types.PRIMITIVE_ARRAY(Types.BYTE()),
    "kinds": Types.INT(),
    "partitions": Types.INT(),
    "offsets": Types.LONG(),
    "times": Types.LONG(),
}
ROW_TYPE = Types.ROW_NAMED(
    ["shard", "records"],
    [
        Types.INT(),
        Types.ROW_NAMED(list(COLUMNS), [Types.OBJECT_ARRAY(kind) for kind in COLUMNS.values()]),
    ],
)


class Records(NamedTuple):
    """N records of a micro-batch, each column of length N.

    kinds: index into the topics the source reads. times: when a record was produced, ms, by the producer's clock.
    """

    keys: tuple[bytes | None, ...]
    values: tuple[bytes | None, ...]
    kinds: tuple[int, ...]
    partitions: tuple[int, ...]
    offsets: tuple[int, ...]
    times: tuple[int, ...]


def micro_batches(
    tables: StreamTableEnvironment,
    source: str,
    topics: list[str],
    shard_keys: list[int],
    window_ms: int,
) -> Table:
    """Rows of ROW_TYPE from `source`, one per shard and window in which records came."""
    # ISO-8859-1 maps every byte to one character, so that any key has a hash code.
    code = "HASH_CODE(DECODE(COALESCE(key_bytes, X'00'), 'ISO-8859-1'))"
    shard = f"MOD(MOD({code}, {len(shard_keys)}) + {len(shard_keys)}, {len(shard_keys)})"
    keys = " ".join(f"WHEN {index} THEN {key}" for index, key in enumerate(shard_keys))
    kinds = " ".join(f"WHEN '{topic}' THEN {index}" for index, topic in enumerate(topics))
    tables.execute_sql(f"""
        CREATE TEMPORARY VIEW {source}_sharded AS
        SELECT CASE {shard} {keys} END AS shard,
               CASE topic {kinds} END AS kind,
               key_bytes, value_bytes, `partition`, `offset`, arrived,
               EXTRACT(EPOCH FROM `timestamp`) * 1000 + EXTRACT(MILLISECOND FROM `timestamp`) AS produced
        FROM {source}""")
    return tables.sql_query(f"""
        SELECT shard, ROW(keys, contents, kinds, partitions, offsets, times) FROM (
            SELECT shard, window_start,
                   ARRAY_AGG(key_bytes) AS keys, ARRAY_AGG(value_bytes) AS contents, ARRAY_AGG(kind) AS kinds,
                   ARRAY_AGG(`partition`) AS partitions, ARRAY_AGG(`offset`) AS offsets,
                   ARRAY_AGG(produced) AS times
            FROM TABLE(TUMBLE(
                TABLE {source}_sharded, DESCRIPTOR(arrived), INTERVAL '{window_ms / 1000:.3f}' SECOND(1, 3)))
            GROUP BY shard, window_start, window_end)""")


def shard_name(shards: int) -> str:
    """The name of the operator that deals records to shards: a checkpoint keeps it, and so tells how many there are."""
    return f"read_shard ({shards} shards)"


def shards_in(name: str) -> int | None:
    """The number in such a name; None in any other, and in that of versions that did not say it."""
    found = re.fullmatch(re.escape(shard_name(0)).replace("0", r"(\d+)"), name)
    return int(found[1]) if found else None


def records_of(row: Row) -> Records:
    """The records of a micro-batch's row."""
    return Records(*row._values)


def balanced_keys(shards: int) -> list[int]:
    """`shards` small integers whose key groups deal evenly to every parallelism that divides into them.

    Flink hashes a key into a key group and gives each subtask a range of groups; keys taken in order would leave
    some subtasks without any shard.
    """
    assign = get_gateway().jvm.org.apache.flink.runtime.state.KeyGroupRangeAssignment
    row: Any = get_gateway().jvm.org.apache.flink.types.Row
    found: dict[int, int] = {}
    candidate = 0
    while len(found) < shards:
        key = row(1)
        key.setField(0, candidate)
        subtask = assign.assignKeyToParallelOperator(key, MAX_PARALLELISM, shards)
        found.setdefault(subtask, candidate)
        candidate += 1
    return [found[subtask] for subtask in sorted(found)]
