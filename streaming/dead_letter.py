"""dead-letters: records that cannot be used, on their way back to their producers through Kafka."""

import time
from collections.abc import Iterable

from pyflink.common import Row, Types
from pyflink.datastream import OutputTag
from pyflink.table import StreamTableEnvironment

from schemas.avro import BadRecord
from schemas.dead_letter import DeadLetter, bury, encode_dead_letter
from schemas.settings import KafkaSettings
from streaming import connector
from streaming.batch import Records

ROW_TYPE = Types.ROW_NAMED(
    ["key_bytes", "value_bytes"],
    [Types.PRIMITIVE_ARRAY(Types.BYTE()), Types.PRIMITIVE_ARRAY(Types.BYTE())],
)
DEAD_LETTERS = OutputTag("dead-letters", ROW_TYPE)
# When nobody takes a dead letter for so long, the job fails, says so, and goes on from its checkpoint, before which all
# dead letters were taken: it waits, and loses none. With Kafka's own two minutes nobody would hear of it as long; with
# less, a broker that restarts would restart the job, too.
UNREACHABLE_MS = 20_000


def letters(
    records: Records, topics: list[str], bad: Iterable[BadRecord], version: str
) -> Iterable[tuple[OutputTag, Row]]:
    """Side outputs for the bad records of a micro-batch."""
    now_ms = int(time.time() * 1000)
    for record in bad:
        p = record.position
        where = (topics[records.kinds[p]], records.partitions[p], records.offsets[p])
        letter = bury(records.values[p], records.keys[p], where, record.reason, record.detail, now_ms, version)
        yield DEAD_LETTERS, row_of(letter)


def row_of(letter: DeadLetter) -> Row:
    """A dead letter for the sink: its key is the original one."""
    return Row(letter.key or b"", encode_dead_letter(letter))


def declare_sink(tables: StreamTableEnvironment, name: str, kafka: KafkaSettings, topic: str) -> None:
    """Declare a Kafka table that takes rows of ROW_TYPE (written at least once, flushed by every checkpoint)."""
    tables.execute_sql(f"""
        CREATE TEMPORARY TABLE {name} (key_bytes BYTES, value_bytes BYTES) WITH (
            {connector.options(kafka)},
            'topic' = '{topic}',
            'sink.delivery-guarantee' = 'at-least-once',
            'properties.delivery.timeout.ms' = '{UNREACHABLE_MS}',
            'properties.request.timeout.ms' = '{UNREACHABLE_MS // 2}',
            'properties.max.block.ms' = '{UNREACHABLE_MS}',
            'key.format' = 'raw',
            'key.fields' = 'key_bytes',
            'value.format' = 'raw',
            'value.fields-include' = 'EXCEPT_KEY'
        )""")
