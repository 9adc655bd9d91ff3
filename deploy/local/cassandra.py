"""Cassandra: one node."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cassandra import AuthenticationFailed, DriverException
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.policies import WhiteListRoundRobinPolicy
from pydantic import SecretStr

from deploy.local import tools
from deploy.local.ports import Ports, answers
from deploy.local.process import Process
from deploy.local.secure import Keys
from deploy.local.server import HERE, Server, render
from schemas.errors import UnreachableError
from schemas.settings import CassandraSettings
from streaming.table import client

CONFIGS = HERE / "cassandra"
ANSWER_S = 10.0
# The superuser of a new node, and his password.
WELL_KNOWN = "cassandra"
VERSION_BYTES = 4
# Answer when the disk has it; or at once, and let the disk have it every second.
DURABLE, QUICK = "batch", "periodic\ncommitlog_sync_period: 1s"


class Cassandra(Server):
    """The node; data and configuration in `STATE/cassandra`."""

    name = "cassandra"

    def __init__(
        self, state: Path, jars: Path, ports: Ports, settings: CassandraSettings, durable: bool, keys: Keys | None
    ) -> None:
        """settings: of a client that may do everything. keys: None where everybody may."""
        self._folder = state / "cassandra"
        self._jars = jars
        self._ports = ports
        self._settings = settings
        self._sync = DURABLE if durable else QUICK
        self._keys = keys
        self.process = Process(self.name, state)

    def ports(self) -> Mapping[str, int]:
        return {"Cassandra": self._ports.cql, "Cassandra's storage": self._ports.cassandra_storage}

    def start(self) -> None:
        jars = tools.jars("cassandra", self._jars)
        data = self._folder / "data"
        config = render(
            CONFIGS / "cassandra.yaml",
            self._folder / "cassandra.yaml",
            CONFIGS / "secure.yaml" if self._keys else None,
            cql_port=self._ports.cql,
            storage_port=self._ports.cassandra_storage,
            data=data,
            commitlog_sync=self._sync,
            **({"keys": self._keys.folder} if self._keys else {}),
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
                # The first superuser is there at once, and gone at once: see _claim.
                "-Dcassandra.superuser_setup_delay_ms=0",
                "-cp",
                f"{jars}/*",
                "org.apache.cassandra.service.CassandraDaemon",
            ]
        )

    def trouble(self) -> str | None:
        if not answers(self._ports.cql):
            return "it accepts no connections"
        try:
            with cql(self._settings) as session:
                session.execute("SELECT release_version FROM system.local", timeout=ANSWER_S)
        except (DriverException, UnreachableError) as error:
            if self._keys and _refused(error):
                return self._claim()
            return str(error)
        return None

    def _claim(self) -> str:
        """Make our superuser as the one that a new node comes with; what came of it, for whoever asks again soon."""
        known = self._settings.model_copy(
            update={"username": WELL_KNOWN, "password": SecretStr(WELL_KNOWN), "password_file": None}
        )
        create = f"CREATE ROLE IF NOT EXISTS {self._settings.username} WITH SUPERUSER = true AND LOGIN = true"
        try:
            with cql(known) as session:
                session.execute(f"{create} AND PASSWORD = %s", (self._settings.secret(),), timeout=ANSWER_S)
        except (DriverException, UnreachableError) as error:
            return str(error)
        return "its superuser was made just now"

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
def cql(settings: CassandraSettings) -> Iterator[Session]:
    """A session for a few statements. Raises UnreachableError when there is no node, or it does not let us in."""
    logging.getLogger("cassandra").setLevel(
        logging.CRITICAL
    )  # it warns about each try; the caller waits and asks again
    host = settings.hosts[0]
    profile = ExecutionProfile(load_balancing_policy=WhiteListRoundRobinPolicy([host]), request_timeout=ANSWER_S)
    cluster = Cluster(
        **client(settings),
        protocol_version=5,
        connect_timeout=ANSWER_S,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
    )
    try:
        yield cluster.connect()
    except NoHostAvailable as error:
        raise UnreachableError(
            f"Cassandra at {host}:{settings.port} does not answer: {error.args[0]}", "see that it runs"
        ) from error
    finally:
        cluster.shutdown()


def _refused(error: Exception) -> bool:
    """Whether a node answers, and does not know us."""
    reasons = error.__cause__.errors.values() if isinstance(error.__cause__, NoHostAvailable) else ()
    return any(isinstance(reason, AuthenticationFailed) for reason in reasons)
