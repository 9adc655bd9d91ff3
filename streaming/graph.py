"""Joining SQL and Python operators without a detour through Python, and naming them after the flow."""

from typing import Any

from pyflink.common import Types
from pyflink.datastream import DataStream, KeyedStream, OutputTag, StreamExecutionEnvironment
from pyflink.java_gateway import get_gateway
from pyflink.table import StreamTableEnvironment

from streaming.batch import ROW_TYPE, micro_batches, shard_name
from streaming.read import CONTROL, EVENTS

# How long a micro-batch waits in its buffer, ms: nothing would come soon to share it. No thread looks after it, either.
AT_ONCE = 0
# What the planner calls the operators before Python, from the end of the flow, and what we call them. An exchange is no
# operator.
_OPERATORS = (
    ("SinkConversion", "batch_out"),
    ("Calc", "batch_row"),
    ("WindowAggregate", "batch"),
    ("Exchange", None),
    ("Calc", "read_shard"),
    ("read", "read"),
)


def batches(
    tables: StreamTableEnvironment,
    source: str,
    topics: list[str],
    shards: list[int],
    window_ms: int,
    buffer_timeout_ms: int,
) -> DataStream:
    """The micro-batches of a table as a stream of (shard key, records), its operators named read and batch.

    buffer_timeout_ms: how long a half full buffer of records waits at the end of read.
    """
    rows = micro_batches(tables, source, topics, shards, window_ms)
    # The row type must be a plain one: the keyed Python operator reads the key's type off it.
    stream = tables.to_append_stream(rows, ROW_TYPE)
    suffix = {EVENTS: "", CONTROL: "_control"}[source]
    transformation = stream._j_data_stream.getTransformation()
    for planned, name in _OPERATORS:
        # A planner that plans otherwise would have our names, and the state behind them, in the wrong places.
        assert transformation.getName().startswith(planned), f"{transformation.getName()} is no {planned}"
        if name is not None:
            told = name == "read_shard" and source == EVENTS
            transformation.setName(shard_name(len(shards)) if told else name + suffix)
            transformation.setUid(name + suffix)
            transformation.setBufferTimeout(buffer_timeout_ms if name.startswith("read") else AT_ONCE)
        inputs = transformation.getInputs()
        transformation = inputs.get(0) if not inputs.isEmpty() else None
    return stream


def keyed(stream: DataStream) -> KeyedStream:
    """A stream of (int key, value) keyed by its first field.

    PyFlink's own `key_by` would send every micro-batch through Python once more, only to put a key before it.
    """
    key_type = Types.ROW([Types.INT()]).get_java_type_info()
    selector = get_gateway().jvm.KeyByKeySelector()
    return KeyedStream(stream._j_data_stream.keyBy(selector, key_type), stream.get_type(), stream)


def named(stream: DataStream, name: str, parallelism: int | None = None) -> Any:
    """Name an operator after its step, in Flink's UI, its metrics and its state alike."""
    if parallelism is not None:
        stream.set_parallelism(parallelism)
    return stream.name(name).uid(name)


def side_output(stream: DataStream, tag: OutputTag, name: str) -> Any:
    """What an operator emits beside its main output. PyFlink puts an operator of its own there, which gets the name."""
    return named(stream.get_side_output(tag), name)


def name_sink(environment: StreamExecutionEnvironment, name: str) -> None:
    """Name the sink that was attached last, and what the planner puts before it."""
    attached = environment._j_stream_execution_environment.getTransformations()
    sink = attached.get(attached.size() - 1)
    for transformation, word in ((sink, name), (sink.getInputs().get(0), f"{name}_in")):
        transformation.setName(word)
        transformation.setUid(word)


def shut_gateway() -> None:
    """Close the ports by which this process and its JVM found each other, once the job is submitted.

    Nobody is asked at them who he is, and whoever reaches the JVM's can run anything in the JobManager. What is
    connected already stays so, and is all that is needed until the job ends.
    """
    gateway = get_gateway()
    server = gateway.java_gateway_server
    listening = server.getClass().getDeclaredField("sSocket")
    listening.setAccessible(True)
    # The server's own `shutdown` would end the connections, too.
    listening.get(server).close()
    gateway.shutdown_callback_server()
