"""read: Kafka's bytes as they are, through Flink's SQL connector, without entering Python.

One source for the topics that change users, one for the topics that change what is served. Values are not decoded
here: a record is its key, its value, where it lies and when it was produced.
"""

from pyflink.table import StreamTableEnvironment

from schemas.settings import KafkaSettings
from streaming import connector

EVENTS, CONTROL = "read_events", "read_control"
# Kafka answers at once when it has so much: some 500 events, a good micro-batch. Only a backlog comes as fast as that.
ENOUGH_BYTES = 64 * 1024


def declare(
    tables: StreamTableEnvironment,
    name: str,
    kafka: KafkaSettings,
    topics: list[str],
    group: str,
    wait_ms: int,
    accept_gap: bool,
) -> None:
    """Declare the table `name` over `topics`, read from where a checkpoint left off, else from what `group` committed.

    wait_ms: how long Kafka may wait for more before it answers.

    An offset that Kafka no longer holds fails the job, unless accept_gap: then the oldest event left comes next. Raises
    ConfigError as `connector.options` does.
    """
    tables.execute_sql(f"""
        CREATE TEMPORARY TABLE {name} (
            key_bytes BYTES,
            value_bytes BYTES,
            topic STRING METADATA VIRTUAL,
            `partition` INT METADATA VIRTUAL,
            `offset` BIGINT METADATA VIRTUAL,
            `timestamp` TIMESTAMP_LTZ(3) METADATA VIRTUAL,
            arrived AS PROCTIME()
        ) WITH (
            {connector.options(kafka)},
            'topic' = '{";".join(topics)}',
            'properties.group.id' = '{group}',
            'properties.fetch.max.wait.ms' = '{wait_ms}',
            'properties.fetch.min.bytes' = '{ENOUGH_BYTES}',
            'properties.client.id.prefix' = '{group}',
            'scan.startup.mode' = 'group-offsets',
            'properties.auto.offset.reset' = '{"earliest" if accept_gap else "none"}',
            'key.format' = 'raw',
            'key.fields' = 'key_bytes',
            'value.format' = 'raw',
            'value.fields-include' = 'EXCEPT_KEY'
        )""")
