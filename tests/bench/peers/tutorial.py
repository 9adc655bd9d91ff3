"""The job as PyFlink's tutorials have it: process mode, one event at a time.

Flink runs this file as a job's entry, with RELEASE_FOLDER as its argument. A KafkaSource, key_by, a
KeyedProcessFunction with one ValueState, one run of the graph and one prepared insert an event. The same state, the
same features, the same rows as the job: what differs is how often Python is entered.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pyflink.common import Configuration, Types, WatermarkStrategy
from pyflink.common.serialization import SimpleStringSchema
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.kafka import KafkaOffsetsInitializer, KafkaSource
from pyflink.datastream.state import ValueStateDescriptor

from deploy.local.config import ProjectSettings
from schemas.click import decode_clicks
from schemas.settings import CommonSettings, load_settings
from schemas.topics import CLICKS
from schemas.user_state import apply_events, dump_states, history, load_states
from tests.bench.acks import AckLog

# One byte, one character: how bytes travel through a source of strings.
BYTES = "ISO-8859-1"


class Recommend(KeyedProcessFunction):  # type: ignore[misc]
    """Everything for one event."""

    def __init__(self, settings: CommonSettings, release: str) -> None:
        self._settings = settings
        self._release = release

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the worker."""
        from tests.bench.peers.driver import RawDriver
        from tests.bench.peers.tuned import Model

        self._model = Model(Path(self._release))
        self._driver = RawDriver(self._settings)
        self._state = runtime_context.get_state(ValueStateDescriptor("user", Types.PICKLED_BYTE_ARRAY()))
        self._acks = AckLog()

    def process_element(self, value: tuple[str, str], ctx: KeyedProcessFunction.Context) -> Iterable[Any]:
        """One event in; its row is in Cassandra when this returns."""
        user, text = value
        clicks, _ = decode_clicks([text.encode(BYTES)], [user.encode()], int(time.time() * 1000))
        states = load_states([self._state.value()])
        apply_events(states, np.zeros(len(clicks), np.int64), clicks)
        states["last_write"] = np.maximum(states["last_write"] + 1, time.time_ns() // 1000)
        self._state.update(dump_states(states)[0])
        (ids,), (scores,) = self._model.lists(states)
        self._driver.write(
            [
                [
                    user.encode(), ids, scores, b"model", self._model.version,
                    history(states, "event_time")[:, -1].astype(">i8").tobytes(),
                    int(time.time() * 1000).to_bytes(8, "big"), (90 * 24 * 3600).to_bytes(4, "big"),
                    states["last_write"].astype(">i8").tobytes(),
                ]
            ]
        )  # fmt: skip
        self._acks.count(np.array([ctx.timestamp()], np.int64))
        return ()


def decode_user(value: bytes) -> str:
    """The second string of a ClickEvent behind its ten bytes of header."""
    first = value[10] // 2
    start = 11 + first
    return value[start + 1 : start + 1 + value[start] // 2].decode()


def main() -> None:
    """Build and run."""
    settings, release = load_settings(ProjectSettings), sys.argv[1]
    configuration = Configuration()
    configuration.set_string("python.execution-mode", "process")
    configuration.set_string("python.executable", sys.executable)
    configuration.set_string("python.client.executable", sys.executable)
    environment = StreamExecutionEnvironment.get_execution_environment(configuration)
    environment.set_parallelism(int(os.environ.get("FRESHREC_STREAMING__PARALLELISM", "1")))
    source = (
        KafkaSource.builder()
        .set_bootstrap_servers(settings.kafka.bootstrap)
        .set_topics(settings.topic(CLICKS))
        .set_group_id("tutorial")
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_value_only_deserializer(SimpleStringSchema(BYTES))
        .build()
    )
    events = environment.from_source(source, WatermarkStrategy.no_watermarks(), "clicks")
    users = events.map(
        lambda text: (decode_user(text.encode(BYTES)), text), Types.TUPLE([Types.STRING(), Types.STRING()])
    )
    users.key_by(lambda event: event[0], Types.STRING()).process(Recommend(settings, release), Types.BYTE())
    environment.execute("tutorial")


if __name__ == "__main__":
    main()
