"""Every port of the stack, from one base: 9000 gives Kafka and Cassandra their usual ones."""

import contextlib
import random
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from schemas.errors import ConfigError, UnreachableError

HOST = "127.0.0.1"
DEFAULT_BASE = 9000
SPAN = 100  # ports of one stack: base … base + 99
MAX_TASKMANAGERS = 20  # as many metrics ports lie between base + 50 and base + 69
# A killed server with much memory holds its ports a moment longer than its number.
DYING_S = 5.0
# Below 10000 live well-known services, from 32768 on the system itself takes ports for outgoing
# connections.
FREE_BASES = range(10_000, 32_000, SPAN)


@dataclass(frozen=True)
class Ports:
    """The ports of one stack. TaskManagers talk to each other on ports the system chooses."""

    base: int = DEFAULT_BASE

    def __post_init__(self) -> None:
        if not 1024 <= self.base <= 65_535 - SPAN:
            raise ConfigError(f"port base {self.base} is out of range", "take one from 1024 to 65435")

    @property
    def kafka(self) -> int:
        return self.base + 92

    @property
    def kafka_controller(self) -> int:
        return self.base + 93

    @property
    def kafka_node(self) -> int:
        """Where the node of a secure stack talks to itself."""
        return self.base + 94

    @property
    def cql(self) -> int:
        return self.base + 42

    @property
    def cassandra_storage(self) -> int:
        return self.base + 70

    @property
    def flink_rest(self) -> int:
        return self.base + 81

    @property
    def flink_rpc(self) -> int:
        return self.base + 23

    @property
    def flink_blobs(self) -> int:
        return self.base + 24

    @property
    def jobmanager_metrics(self) -> int:
        return self.base + 49

    def taskmanager_metrics(self, number: int) -> int:
        """Prometheus port of a TaskManager: number = 1, 2, 3 and so on."""
        return self.base + 49 + number


def is_free(port: int) -> bool:
    """Whether a server could listen on the port; one in TIME_WAIT is free, as it is for ours."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def answers(port: int, timeout_s: float = 1.0) -> bool:
    """Whether something accepts connections on the port."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=timeout_s):
        return True
    return False


def free_base() -> int:
    """A base whose ports are all free, for a stack beside others. Raises UnreachableError."""
    bases = list(FREE_BASES)
    random.shuffle(bases)  # two stacks that start at the same moment should not choose the same
    for base in bases:
        if all(is_free(port) for port in range(base, base + SPAN)):
            return base
    raise UnreachableError("no block of 100 free ports was found", "stop what holds the ports 10000 to 32000")


def require_free(wanted: Mapping[str, int]) -> None:
    """Raise UnreachableError for the first taken port; `wanted` maps the purpose to the port."""
    deadline = time.monotonic() + DYING_S
    for purpose, port in wanted.items():
        while not is_free(port) and not _holder(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not is_free(port):
            raise UnreachableError(
                f"port {port} ({purpose}) is taken{_holder(port)}",
                "stop that process, or choose other ports with --port-base or --free-ports",
            )


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                name = psutil.Process(connection.pid).name() if connection.pid else "a process"
                return f" by {name} (pid {connection.pid})" if connection.pid else ""
    except psutil.Error:
        pass  # other users' sockets are not ours to see: the message does without
    return ""
