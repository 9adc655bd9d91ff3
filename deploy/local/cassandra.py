"""Cassandra: one node."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cassandra import DriverException
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.policies import WhiteListRoundRobinPolicy

from deploy.local import tools
from deploy.local.ports import HOST, Ports, answers
from deploy.local.process import Process
from deploy.local.server import HERE, Server, render
from schemas.errors import UnreachableError

CONFIGS = HERE / "cassandra"
ANSWER_S = 10.0
VERSION_BYTES = 4


class Cassandra(Server):
    """The node; data and configuration in `STATE/cassandra`."""

    name = "cassandra"

    def __init__(self, state: Path, jars: Path, ports: Ports) -> None:
        self._folder = state / "cassandra"
        self._jars = jars
        self._ports = ports
        self.process = Process(self.name, state)

    def ports(self) -> Mapping[str, int]:
        return {"Cassandra": self._ports.cql, "Cassandra's storage": self._ports.cassandra_storage}

    def start(self) -> None:
        jars = tools.jars("cassandra", self._jars)
        data = self._folder / "data"
        config = render(
            CONFIGS / "cassandra.yaml",
            self._folder / "cassandra.yaml",
            cql_port=self._ports.cql,
            storage_port=self._ports.cassandra_storage,
            data=data,
        )
        if self.process.pid is None:
            remove_unbegun(data / "commitlog")
        agent = next(jars.glob("jamm-*.jar"))
        self.process.start(
            [
                tools.java(),
                f"@{CONFIGS / 'jvm.options'}",
                f"-javaagent:{agent}",
                f"-Dcassandra.config={config.as_uri()}",
                f"-Dcassandra.storagedir={data}",
                f"-Dlogback.configurationFile={CONFIGS / 'logback.xml'}",
                f"-Djava.io.tmpdir={self._scratch()}",
                "-Dcassandra-foreground=yes",
                "-cp",
                f"{jars}/*",
                "org.apache.cassandra.service.CassandraDaemon",
            ]
        )

    def trouble(self) -> str | None:
        if not answers(self._ports.cql):
            return "it accepts no connections"
        try:
            with cql(self._ports.cql) as session:
                session.execute("SELECT release_version FROM system.local", timeout=ANSWER_S)
        except (DriverException, UnreachableError) as error:
            return str(error)
        return None

    def _scratch(self) -> Path:
        """Native libraries are unpacked there: a shared /tmp may forbid to run them."""
        scratch = self._folder / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch


def remove_unbegun(commit_log: Path) -> None:
    """Remove segments of the commit log that a full disk let be made but not begun: the node would not start with them.

    A segment begins with its version. Where that is not there yet nothing was ever written, and nobody was told so.
    """
    for segment in commit_log.glob("CommitLog-*.log"):
        with segment.open("rb") as file:
            begun = any(file.read(VERSION_BYTES))
        if not begun:
            segment.unlink()


@contextmanager
def cql(port: int, host: str = HOST) -> Iterator[Session]:
    """A session for a few statements. Raises UnreachableError when there is no node."""
    logging.getLogger("cassandra").setLevel(
        logging.CRITICAL
    )  # it warns about each try; the caller waits and asks again
    profile = ExecutionProfile(load_balancing_policy=WhiteListRoundRobinPolicy([host]), request_timeout=ANSWER_S)
    cluster = Cluster(
        [host],
        port=port,
        protocol_version=5,
        connect_timeout=ANSWER_S,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
    )
    try:
        yield cluster.connect()
    except NoHostAvailable as error:
        raise UnreachableError(
            f"Cassandra at {host}:{port} does not answer: {error.args[0]}", "see that it runs"
        ) from error
    finally:
        cluster.shutdown()
