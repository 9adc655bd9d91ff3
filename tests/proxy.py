"""A network between the job and Cassandra that can be made slow, silent, or a refuser: a TCP proxy.

It knows the frames of Cassandra's native protocol, version 4: version, flags, stream (2 bytes), opcode, length (4).
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

from deploy.local.ports import HOST

HEADER = struct.Struct(">BBHBI")
RESPONSE, ERROR, QUERY, EXECUTE, BATCH = 0x80, 0x00, 0x07, 0x0A, 0x0D
# What Cassandra answers when it has too much to do, and to who may not write: code and text.
OVERLOADED, UNAUTHORIZED = (0x1001, b"too many requests"), (0x2100, b"the job has no MODIFY permission")


class Proxy:
    """Listens on `port` and passes on to `target`. Every field may be changed while it runs.

    delay_s: how long each answer is held back. silent: answers are lost. refusing: what writes are answered with.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay_s = 0.0
        self.silent = False
        self.refusing: tuple[int, bytes] | None = None
        self.lost = self.refused = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End it and all its connections."""
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections, as a firewall does that has lost their tracks."""
        with self._lock:
            ending, self._open = self._open, set()
        for connection in ending:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection((HOST, self._target))
                except OSError:
                    client.close()
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open |= {client, server}
                threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answers, args=(server, client), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with self._until_closed(client, server):
            while True:
                header, body = _frame(client)
                _, _, stream, opcode, _ = HEADER.unpack(header)
                refusing = self.refusing
                if refusing and opcode in (EXECUTE, BATCH):
                    self.refused += 1
                    client.sendall(_refusal(stream, *refusing))
                else:
                    server.sendall(header + body)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with self._until_closed(client, server):
            while True:
                header, body = _frame(server)
                if self.silent:
                    self.lost += 1
                    continue
                if self.delay_s:
                    time.sleep(self.delay_s)
                client.sendall(header + body)

    @contextlib.contextmanager
    def _until_closed(self, *ends: socket.socket) -> Iterator[None]:
        try:
            with contextlib.suppress(OSError, EOFError):
                yield
        finally:
            with self._lock:
                self._open -= set(ends)
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


def _frame(source: socket.socket) -> tuple[bytes, bytes]:
    header = _exactly(source, HEADER.size)
    return header, _exactly(source, HEADER.unpack(header)[4])


def _exactly(source: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = source.recv(count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _refusal(stream: int, code: int, text: bytes) -> bytes:
    body = struct.pack(">iH", code, len(text)) + text
    return HEADER.pack(RESPONSE | 4, 0, stream, ERROR, len(body)) + body
