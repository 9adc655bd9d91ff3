"""Who may do what on a stack that was started with --secure: accounts, and the least that each needs.

    admin      everything: creates topics and tables, replays dead letters, looks at all of it
    job        reads events and releases, writes rows, dead letters and roll-backs
    trainer    reads events, writes releases
    producer   writes events
    reader     reads rows, and nothing in Kafka

Rights are those of one namespace; accounts are shared by all. Everything here may be done again.
"""

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any

from cassandra import DriverException
from cassandra.cluster import Session
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import (
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)

from deploy.local.cassandra import WELL_KNOWN, cql
from deploy.local.kafka import ANSWER_S, QUIET
from deploy.local.secure import Keys, new_password
from deploy.local.server import POLL_S, replace_secret
from schemas.errors import ContractError, UnreachableError
from schemas.settings import CassandraSettings, CommonSettings
from schemas.topics import CLICKS, DEAD_LETTERS, ERASURES, ITEMS, MODEL_RELEASES, ROLL_BACKS

READ, WRITE = AclOperation.READ, AclOperation.WRITE
BOTH = ("kafka", "cassandra")
EVENTS = (CLICKS, ITEMS, ERASURES)
# account → topics that it reads, topics that it writes. Either lets it see that the topic is there.
TOPICS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # It reads its own dead letters in `check` alone.
    "job": ((*EVENTS, MODEL_RELEASES, ROLL_BACKS, DEAD_LETTERS), (DEAD_LETTERS, ROLL_BACKS)),
    "trainer": ((*EVENTS, MODEL_RELEASES, ROLL_BACKS), (MODEL_RELEASES,)),
    "producer": ((), EVENTS),
}
# account → groups that it reads in, {job} for the job's name in its namespace. A client that joins none asks, too.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "job": ("{job}", "{job}-control", "{job}-lease", "{job}-look", "freshrec-look"),
    "trainer": ("freshrec-trainer",),
}
# account → its rights on the tables of recommendation.cql.
TABLES: Mapping[str, tuple[str, ...]] = {"job": ("SELECT", "MODIFY"), "reader": ("SELECT",)}
# SCRAM's own: how often a password is hashed. Kafka takes no fewer than 4096.
ITERATIONS = 8192


def create(settings: CommonSettings, keys: Keys, servers: Collection[str] = BOTH) -> None:
    """Give every account its password, as the admin whose settings these are.

    Raises UnreachableError, ContractError when a server refuses.
    """
    if "kafka" in servers:
        _set_in_kafka(settings, {name: keys.password_file(name).read_bytes() for name in TOPICS})
    if "cassandra" in servers:
        with cql(settings.cassandra) as session:
            _run(session, f"DROP ROLE IF EXISTS {WELL_KNOWN}")
            for name in TABLES:
                _run(session, f"CREATE ROLE IF NOT EXISTS {name} WITH LOGIN = true")
                _run(session, f"ALTER ROLE {name} WITH PASSWORD = %s", keys.password_file(name).read_text())


def rotate(settings: CommonSettings, keys: Keys, account: str) -> None:
    """Give one account, the admin too, a new password: on the servers, and then in its file. Raises as `create`.

    Until then the new one is in ACCOUNT.next: who is killed in between finds it there.
    """
    password, file = new_password(), keys.password_file(account)
    following = replace_secret(file.with_suffix(".next"), password)
    admin = account == settings.kafka.username
    if account in TOPICS or admin:
        _set_in_kafka(settings, {account: password})
    if account in TABLES or admin:
        with cql(settings.cassandra) as session:
            _run(session, f"ALTER ROLE {account} WITH PASSWORD = %s", password.decode())
        _wait_until_known(settings.cassandra.model_copy(update={"username": account, "password_file": following}))
    following.replace(file)


def _wait_until_known(settings: CassandraSettings) -> None:
    """A node remembers a password for two seconds (credentials_validity), the new one being wrong until then."""
    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            with cql(settings):
                return
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def grant(settings: CommonSettings, servers: Collection[str] = BOTH) -> None:
    """Let every account do what it must with topics and tables of the settings' namespace. Raises as `create`."""
    if "kafka" in servers:
        _in_kafka(settings, lambda admin: admin.create_acls(kafka_rights(settings), request_timeout=ANSWER_S))
    if "cassandra" in servers:
        with cql(settings.cassandra) as session:
            for statement in table_rights(settings):
                _run(session, statement)


def kafka_rights(settings: CommonSettings) -> list[AclBinding]:
    """Every right in Kafka of one namespace."""
    rights = []
    for account, (read, written) in TOPICS.items():
        for operation, topics in ((READ, read), (WRITE, written)):
            rights += [_right(ResourceType.TOPIC, settings.topic(topic), account, operation) for topic in topics]
        groups = sorted({group.format(job=settings.job_name) for group in GROUPS.get(account, ())})
        rights += [_right(ResourceType.GROUP, group, account, READ) for group in groups]
    return rights


def table_rights(settings: CommonSettings) -> list[str]:
    """Every right in Cassandra on the tables of one namespace, as the statement that gives it."""
    return [
        f"GRANT {right} ON {settings.keyspace}.{table} TO {account}"
        for account, rights in TABLES.items()
        for right in rights
        for table in ("recommendations", "trending")
    ]


def _right(kind: ResourceType, name: str, account: str, operation: AclOperation) -> AclBinding:
    anywhere, allow = "*", AclPermissionType.ALLOW
    return AclBinding(kind, name, ResourcePatternType.LITERAL, f"User:{account}", anywhere, operation, allow)


def _set_in_kafka(settings: CommonSettings, passwords: Mapping[str, bytes]) -> None:
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, ITERATIONS)
    users: list[UserScramCredentialAlteration] = [
        UserScramCredentialUpsertion(name, info, password) for name, password in passwords.items()
    ]
    _in_kafka(settings, lambda admin: admin.alter_user_scram_credentials(users, request_timeout=ANSWER_S))


def _in_kafka(settings: CommonSettings, act: Callable[[AdminClient], Mapping[Any, Future[Any]]]) -> None:
    try:
        admin = AdminClient({**settings.kafka.client(), **QUIET})
        for future in act(admin).values():
            future.result()
    except KafkaException as error:
        raise UnreachableError(
            f"Kafka at {settings.kafka.bootstrap} makes no accounts: {error.args[0].str()}", "see that it runs"
        ) from error


def _run(session: Session, statement: str, *values: str) -> None:
    try:
        session.execute(statement, values or None, timeout=ANSWER_S)
    except DriverException as error:
        said = statement.partition(" WITH")[0]
        raise ContractError(f"Cassandra does not take {said}: {error}", "see its log") from error
