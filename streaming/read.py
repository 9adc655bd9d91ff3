"""read: Kafka's bytes as they are, through Flink's SQL connector, without entering Python.

One source for the topics that change users, one for the topics that change what is served. Values are not decoded
here: a record is its key, its value, where it lies and when it was produced.
"""

from pyflink.table import StreamTableEnvironment

EVENTS, CONTROL = "read_events", "read_control"


def declare(tables: StreamTableEnvironment, name: str, bootstrap: str, topics: list[str], group: str) -> None:
    """Declare the table `name` over `topics`, read from the start or from where a checkpoint left off."""
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
            'connector' = 'kafka',
            'topic' = '{";".join(topics)}',
            'properties.bootstrap.servers' = '{bootstrap}',
            'properties.group.id' = '{group}',
            'properties.fetch.max.wait.ms' = '20',
            'properties.client.id.prefix' = '{group}',
            'scan.startup.mode' = 'earliest-offset',
            'key.format' = 'raw',
            'key.fields' = 'key_bytes',
            'value.format' = 'raw',
            'value.fields-include' = 'EXCEPT_KEY'
        )""")
