"""A connection to Cassandra, made for many small rows: used by the job, its checks and its look-ups."""

import logging
import socket
import ssl
from typing import Any

from cassandra import AuthenticationFailed, ConsistencyLevel, ProtocolVersion, UnresolvableContactPoints
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import (
    EXEC_PROFILE_DEFAULT,
    Cluster,
    ExecutionProfile,
    NoHostAvailable,
    Session,
)
from cassandra.policies import (
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    TokenAwarePolicy,
)

from schemas.errors import ContractError, UnreachableError
from schemas.recommendation import COLUMNS
from schemas.settings import CassandraSettings, CommonSettings

# Without it every request above some 4 KiB waits 45 ms for a delayed acknowledgement.
NO_DELAY = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
REQUEST_TIMEOUT_S = 5.0
# The driver reports every lost connection with a traceback; whether rows arrive is what we report.
logging.getLogger("cassandra").setLevel(logging.CRITICAL)

EXPECTED: dict[str, dict[str, str]] = {
    table: {
        key: "text",
        **dict(
            zip(
                COLUMNS,
                (
                    "frozen<list<text>>",
                    "frozen<list<float>>",
                    "text",
                    "text",
                    "timestamp",
                    "timestamp",
                ),
                strict=True,
            )
        ),
    }
    for table, key in (("recommendations", "user_id"), ("trending", "scope"))
}


class WideConnection(Cluster.connection_class):  # type: ignore[misc]
    """A connection that hands a whole batch to the system at once, where the driver's own would cut it in ten."""

    out_buffer_size = 64 * 1024  # bytes: more than a batch has


def client(cassandra: CassandraSettings) -> dict[str, Any]:
    """What every Cluster begins with: where, who we are, whom we believe. Raises ConfigError without the password."""
    common: dict[str, Any] = {"contact_points": cassandra.hosts, "port": cassandra.port}
    if cassandra.username:
        common["auth_provider"] = PlainTextAuthProvider(cassandra.username, cassandra.secret())
    if cassandra.ca_file:
        common["ssl_context"] = ssl.create_default_context(cafile=str(cassandra.ca_file))
    return common


def connect(settings: CommonSettings) -> Session:
    """A session on the settings' Cassandra, whatever its keyspaces. Raises UnreachableError."""
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(settings.cassandra.datacenter)),
        consistency_level=ConsistencyLevel.LOCAL_QUORUM,
        request_timeout=REQUEST_TIMEOUT_S,
    )
    try:
        cluster = Cluster(
            **client(settings.cassandra),
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            connection_class=WideConnection,
            sockopts=NO_DELAY,
            connect_timeout=REQUEST_TIMEOUT_S,
            # Version 5 adds checksums to TCP's own, which cost some 15 % of all that writing a row costs.
            protocol_version=ProtocolVersion.V4,
            # Rows go to servers nearby, and packing them would cost more than sending them.
            compression=False,
            # A server that comes back is used again within a second or two, not after the default's ten minutes, and
            # however long it was away: by default the driver gives up after 64 tries, two minutes of these.
            reconnection_policy=ExponentialReconnectionPolicy(0.5, 2.0, max_attempts=None),
        )
    except UnresolvableContactPoints as error:
        raise _unreachable(settings, "its name cannot be resolved", "correct cassandra.hosts") from error
    try:
        return cluster.connect()
    except NoHostAvailable as error:
        cluster.shutdown()
        # By host; the first says what the others would.
        reason = next(iter(error.errors.values()), error)
        if isinstance(reason, AuthenticationFailed):
            remedy = "correct cassandra.username and cassandra.password"
        else:
            remedy = "start it, or correct cassandra.hosts, cassandra.port and cassandra.datacenter"
        raise _unreachable(settings, str(reason).splitlines()[0], remedy) from error


def _unreachable(settings: CommonSettings, reason: str, remedy: str) -> UnreachableError:
    where = f"{','.join(settings.cassandra.hosts)}:{settings.cassandra.port}"
    return UnreachableError(f"Cassandra at {where} does not answer ({reason})", remedy)


def check_tables(session: Session, keyspace: str) -> None:
    """Raises ContractError with the difference when a table is missing or unlike the schema."""
    found: Any = session.cluster.metadata.keyspaces.get(keyspace)
    if found is None:
        raise ContractError(f"keyspace {keyspace} does not exist", "create it from schemas/recommendation.cql")
    for table, columns in EXPECTED.items():
        if table not in found.tables:
            raise ContractError(
                f"table {keyspace}.{table} does not exist",
                "create it from schemas/recommendation.cql",
            )
        actual = {name: column.cql_type for name, column in found.tables[table].columns.items()}
        wrong = [
            f"{name} is {actual.get(name, 'missing')}, not {kind}"
            for name, kind in columns.items()
            if actual.get(name) != kind
        ]
        key = [column.name for column in found.tables[table].primary_key]
        if not wrong and key != [next(iter(columns))]:
            wrong = [f"its key is {', '.join(key)}, not {next(iter(columns))}"]
        if wrong:
            raise ContractError(
                f"table {keyspace}.{table} is unlike the schema: {'; '.join(wrong)}",
                "bring it to schemas/recommendation.cql",
            )
