"""A batch whose statements are bytes already, sent through cassandra-driver like any other.

The driver turns a batch into a frame value by value, some ten microseconds a row. Here it is asked for the frame of
an empty batch, and the statements are put in. All else is the driver's: connections, replicas, time-outs, preparing
anew what a server has forgotten. Where a driver does otherwise than expected (`fits`), it gets the same batch the
ordinary way: `Statements` reads as the list of statements that the driver keeps in a batch.
"""

import copy
import struct
from collections.abc import Iterator, Sequence
from typing import Any, overload

from cassandra import ConsistencyLevel
from cassandra.protocol import BatchMessage, ProtocolHandler
from cassandra.query import BatchStatement, BatchType

from streaming.wire import split_values

# A frame's header: version, flags, stream (2 bytes), opcode, and the length of the body.
_LENGTH_AT, _BODY_AT = 5, 9
# A batch's body: its type, the number of statements, the statements, how to run them.
_COUNT_AT, _STATEMENTS_AT = _BODY_AT + 1, _BODY_AT + 3
_NUMBER, _LENGTH = struct.Struct(">H"), struct.Struct(">i")
_PREPARED = 1

Statement = tuple[bool, bytes, list[bytes]]


class Statements(Sequence[Statement]):
    """One prepared statement many times. statement_id: the server's id of it. values: those of each, in wire form."""

    def __init__(self, statement_id: bytes, values: list[bytes]) -> None:
        self._id = statement_id
        self._values = values

    def wire(self) -> bytes:
        """All statements as they lie in a frame."""
        # What comes before the values is the same for all: it is what joins them.
        before = bytes([_PREPARED]) + _NUMBER.pack(len(self._id)) + self._id
        return before + before.join(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, index: int) -> Statement: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Statement]: ...
    def __getitem__(self, index: int | slice) -> Statement | Sequence[Statement]:
        if isinstance(index, slice):
            return Statements(self._id, self._values[index])
        return True, self._id, split_values(self._values[index])

    def __iter__(self) -> Iterator[Statement]:
        return (self[index] for index in range(len(self)))


class WireBatch(BatchStatement):  # type: ignore[misc]
    """An unlogged batch of statements in wire form. routing_key: of any of its rows, all of one set of replicas."""

    def __init__(self, statements: Statements, keyspace: str, routing_key: bytes) -> None:
        super().__init__(BatchType.UNLOGGED)
        self._statements_and_parameters = statements
        self.keyspace = keyspace
        self.routing_key = routing_key


class WireProtocol(ProtocolHandler):  # type: ignore[misc]
    """The driver's protocol, with a quicker way for batches of `Statements`."""

    @classmethod
    def encode_message(
        cls, msg: Any, stream_id: int, protocol_version: int, compressor: Any, allow_beta_protocol_version: bool
    ) -> bytes:
        """The frame of a message."""
        statements = getattr(msg, "queries", None)
        if not isinstance(statements, Statements) or compressor is not None:
            whole: bytes = super().encode_message(
                msg, stream_id, protocol_version, compressor, allow_beta_protocol_version
            )
            return whole
        empty = copy.copy(msg)
        empty.queries = ()
        frame = super().encode_message(empty, stream_id, protocol_version, None, allow_beta_protocol_version)
        wire = statements.wire()
        return b"".join(
            (
                frame[:_LENGTH_AT],
                _LENGTH.pack(len(frame) - _BODY_AT + len(wire)),
                frame[_BODY_AT:_COUNT_AT],
                _NUMBER.pack(len(statements)),
                wire,
                frame[_STATEMENTS_AT:],
            )
        )


def fits(protocol_version: int, keyspace: str) -> bool:
    """Whether this driver makes of a batch of ours the frame that it makes of an ordinary one."""
    statements = Statements(b"one", [b"\0\1\0\0\0\1x", b"\0\2\0\0\0\0\0\0\0\1y"])
    batch = WireBatch(statements, keyspace, b"x")
    try:
        message = BatchMessage(
            batch.batch_type,
            batch._statements_and_parameters,
            ConsistencyLevel.LOCAL_QUORUM,
            keyspace=keyspace if protocol_version >= 5 else None,
        )
        ours = WireProtocol.encode_message(message, 7, protocol_version, None, False)
        message.queries = list(statements)
        theirs: bytes = ProtocolHandler.encode_message(message, 7, protocol_version, None, False)
    except Exception:  # whatever a driver of another version raises: then the ordinary way it is
        return False
    return ours == theirs
