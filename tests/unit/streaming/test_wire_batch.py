"""A batch in wire form is the frame that the driver makes of the same rows, or is left to the driver."""

from typing import Any

import pytest
from cassandra import ConsistencyLevel
from cassandra.protocol import BatchMessage, ProtocolHandler
from cassandra.query import BatchType
from hypothesis import given
from hypothesis import strategies as st

from streaming import wire_batch
from streaming.wire import split_values
from streaming.wire_batch import Statements, WireBatch, WireProtocol, fits

KEYSPACE = "shop"
VALUES = st.lists(st.lists(st.binary(max_size=40), max_size=9), min_size=1, max_size=40)


def wire(values: list[bytes]) -> bytes:
    """Values of a statement, as a frame holds them."""
    return len(values).to_bytes(2, "big") + b"".join(len(v).to_bytes(4, "big") + v for v in values)


def message(queries: Any, protocol: int) -> BatchMessage:
    keyspace = KEYSPACE if protocol >= 5 else None
    return BatchMessage(BatchType.UNLOGGED, queries, ConsistencyLevel.LOCAL_QUORUM, timestamp=5, keyspace=keyspace)


@given(VALUES, st.binary(min_size=1, max_size=16), st.sampled_from([3, 4, 5]), st.integers(0, 32767))
def test_the_frame_is_the_drivers_to_the_byte(rows: list[list[bytes]], name: bytes, protocol: int, stream: int) -> None:
    statements = Statements(name, [wire(row) for row in rows])
    ordinary = [(True, name, row) for row in rows]
    ours = WireProtocol.encode_message(message(statements, protocol), stream, protocol, None, False)
    assert ours == ProtocolHandler.encode_message(message(ordinary, protocol), stream, protocol, None, False)


@given(VALUES)
def test_without_the_quick_way_the_driver_reads_the_same_statements(rows: list[list[bytes]]) -> None:
    statements = Statements(b"name", [wire(row) for row in rows])
    assert list(statements) == [(True, b"name", row) for row in rows]
    assert (len(statements), statements[-1]) == (len(rows), (True, b"name", rows[-1]))
    assert list(statements[1:]) == list(statements)[1:]
    slow = ProtocolHandler.encode_message(message(statements, 4), 1, 4, None, False)
    assert slow == WireProtocol.encode_message(message(statements, 4), 1, 4, None, False)


def test_other_messages_and_packed_connections_are_the_drivers_own() -> None:
    ordinary = [(True, b"name", [b"x"])]
    statements = Statements(b"name", [wire([b"x"])])
    for queries, compressor in ((ordinary, None), (statements, bytes.swapcase)):
        ours = WireProtocol.encode_message(message(queries, 4), 1, 4, compressor, False)
        assert ours == ProtocolHandler.encode_message(message(ordinary, 4), 1, 4, compressor, False)


def test_a_batch_goes_to_its_rows_replicas_and_is_unlogged() -> None:
    batch = WireBatch(Statements(b"name", [wire([b"x"])]), KEYSPACE, b"key")
    assert (batch.batch_type, batch.keyspace, batch.routing_key) == (BatchType.UNLOGGED, KEYSPACE, b"key")
    assert len(batch) == 1


def test_a_driver_that_does_otherwise_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fits(4, KEYSPACE) and fits(5, KEYSPACE)

    def longer(self: Any, f: Any, protocol_version: int) -> None:
        f.write(b"a byte more")
        send_body(self, f, protocol_version)

    send_body = BatchMessage.send_body
    monkeypatch.setattr(BatchMessage, "send_body", longer)
    assert not fits(4, KEYSPACE)
    monkeypatch.setattr(wire_batch, "BatchMessage", None)
    assert not fits(4, KEYSPACE)


def test_split_values_reads_what_the_driver_wrote() -> None:
    assert split_values(wire([])) == []
    assert split_values(wire([b"", b"ab"])) == [b"", b"ab"]
