"""A stack that was started with --secure: who has a right gets in, nobody else does, and no secret lies about."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from cassandra import DriverException
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from pydantic import SecretStr

from deploy.local.cassandra import WELL_KNOWN, cql
from deploy.local.config import REPOSITORY
from deploy.local.flink_rest import FlinkRest
from deploy.local.ports import HOST
from deploy.local.secure import ACCOUNTS, Keys, make_pair
from deploy.local.stack import Stack
from schemas.click import Click, encode_click
from schemas.errors import UnreachableError
from schemas.release import encode_release
from schemas.settings import CommonSettings
from schemas.topics import CLICKS, DEAD_LETTERS, MODEL_RELEASES, ROLL_BACKS
from streaming.table import connect
from tests.harness import RunningJob, servers
from tests.releases import make_release
from tests.traffic import FIRST, make_clicks, told
from trainer.broker import reader, send
from trainer.config import Settings as TrainerSettings

ANSWER_S = 10.0
# What says that a door stays shut. A broker has no word for somebody who does not even speak its language: it hangs up.
REFUSED = (
    "_ALL_BROKERS_DOWN",
    "_AUTHENTICATION",
    "_SSL",
    "_TRANSPORT",
    "GROUP_AUTHORIZATION_FAILED",
    "TOPIC_AUTHORIZATION_FAILED",
)


@pytest.mark.long
def test_the_whole_flow_holds_with_every_lock_on() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/flow/test_flow.py", "tests/flow/test_trainer.py"],
        env={**os.environ, "FRESHREC_TEST_SECURE": "yes"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=590,
    )
    assert done.returncode == 0, done.stdout[-3000:]


class Onlooker:
    """Another user of the machine: sees the command lines of all processes, all the time."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Onlooker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ending.wait(0.2):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    self.seen.add((folder / "cmdline").read_text(errors="replace"))
                except OSError:
                    continue


@pytest.fixture(scope="module")
def onlooker() -> Iterator[Onlooker]:
    with Onlooker() as onlooker:
        yield onlooker


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, onlooker: Onlooker) -> Iterator[Stack]:
    """Servers with every lock on; KEEP_SECURE_STATE keeps the folder for a look afterwards."""
    state = Path(os.environ.get("KEEP_SECURE_STATE", tmp_path_factory.mktemp("secure")))
    with servers(state, secure=True) as stack:
        yield stack


@pytest.fixture(scope="module")
def job(secure: Stack) -> Iterator[RunningJob]:
    job = RunningJob(secure, "test_secure")
    job.start()
    yield job
    job.stop()


def of(job: RunningJob, account: str) -> CommonSettings:
    """Settings of an account in the namespace of the job."""
    login = job.stack.settings_of(account)
    return CommonSettings(namespace=job.namespace, kafka=login.kafka, cassandra=login.cassandra)


@contextmanager
def _reached_as(job: RunningJob, producer: str, reader: str) -> Iterator[None]:
    """Through the accounts of a producer and a reader, for a while."""
    own = job.producer, job.session
    job.producer = Producer({**of(job, producer).kafka.client(), "linger.ms": 1})
    try:
        with cql(of(job, reader).cassandra) as job.session:
            yield
    finally:
        job.producer.close()
        job.producer, job.session = own


def otherwise(settings: CommonSettings, change: dict[str, Any]) -> CommonSettings:
    """The same of somebody who says something else of himself."""
    kafka, cassandra = (login.model_copy(update=change) for login in (settings.kafka, settings.cassandra))
    return settings.model_copy(update={"kafka": kafka, "cassandra": cassandra})


def test_a_click_becomes_a_row_though_nobody_may_do_more_than_his_part(job: RunningJob, tmp_path: Path) -> None:
    trainer = TrainerSettings(namespace=job.namespace, kafka=of(job, "trainer").kafka)
    release = make_release(tmp_path / "first", *FIRST)
    clicks = make_clicks("secure", 60, users=5)
    oracle = told(clicks)
    with _reached_as(job, producer="producer", reader="reader"):
        send(trainer, job.settings.topic(MODEL_RELEASES), release.version.encode(), encode_release(release))
        sent: list[Click] = []

        def serves() -> bool:
            sent.append(Click(f"probe-{len(sent)}", "probe", "item-000", int(time.time() * 1000)))
            job.click(sent[-1:])
            row = job.row("probe")
            return row is not None and row.model_version == release.version

        job.eventually(f"release {release.version} serves", serves)
        job.click(clicks)
        job.agree(oracle, FIRST)
        job.click([bad := Click("future", "secure-user-0", "item-000", int(time.time() * 1000) + 3_600_000)])
    job.eventually("the job says what it could not use", lambda: len(job.dead_letters()) == 1)
    with reader(trainer) as kafka:
        events = {message.value() for message in kafka.read_all(job.settings.topic(CLICKS))}
    assert events == {encode_click(click) for click in [*sent, *clicks, bad]}


# ── doors ────────────────────────────────────────────────────────────────────────────────────────
# A probe opens one as somebody, and says what refused him: "" when he got in.


def _said(act: Callable[[list[str]], str | None]) -> str:
    """The word of the first refusal, as the client's library has it."""
    errors: list[str] = []
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        outcome = act(errors)
        refusals = [word for word in errors if word in REFUSED]
        if outcome is not None or refusals:
            return refusals[0] if refusals else str(outcome)
    raise AssertionError(f"neither in nor refused: {errors}")


def write_to(topic: str) -> Callable[[CommonSettings], str]:
    def probe(settings: CommonSettings) -> str:
        outcome: list[KafkaError | None] = []
        errors: list[str] = []
        producer = Producer({**settings.kafka.client(), "log_level": 0, "error_cb": lambda e: errors.append(e.name())})
        producer.produce(settings.topic(topic), b"x", b"k", on_delivery=lambda error, _: outcome.append(error))

        def act(said: list[str]) -> str | None:
            producer.poll(0.1)
            said += [*errors, *(error.name() for error in outcome if error is not None)]
            return "" if any(error is None for error in outcome) else None

        word = _said(act)
        producer.purge()
        return word

    return probe


def read_from(topic: str) -> Callable[[CommonSettings], str]:
    def probe(settings: CommonSettings) -> str:
        errors: list[str] = []
        watch: dict[str, Any] = {
            "log_level": 0,
            "error_cb": lambda e: errors.append(e.name()),
            "enable.partition.eof": True,
        }
        group = "freshrec-trainer" if settings.kafka.username == "trainer" else "freshrec-look"
        consumer = Consumer({**settings.kafka.client(), **watch, "group.id": group})
        consumer.assign([TopicPartition(settings.topic(topic), 0, 0)])

        def act(said: list[str]) -> str | None:
            message: Message | None = consumer.poll(0.1)
            if message is None:
                # Of a topic that may not even be seen nothing comes, not even an error.
                with suppress(KafkaException):
                    unseen = (
                        consumer.list_topics(settings.topic(topic), timeout=1.0).topics[settings.topic(topic)].error
                    )
                    said += [unseen.name()] if unseen is not None else []
            error = message.error() if message is not None else None
            said += [*errors, *([error.name()] if error is not None else [])]
            ended = error is not None and error.code() == KafkaError._PARTITION_EOF
            return "" if ended or (message is not None and error is None) else None

        try:
            return _said(act)
        finally:
            consumer.close()

    return probe


def administer(ask: Callable[[AdminClient, CommonSettings], Mapping[Any, Any]]) -> Callable[[CommonSettings], str]:
    """ask: one thing, as the client's library has it, by name a future."""

    def probe(settings: CommonSettings) -> str:
        errors: list[str] = []
        watch: dict[str, Any] = {"log_level": 0, "error_cb": lambda e: errors.append(e.name())}
        admin = AdminClient({**settings.kafka.client(), **watch})
        (future,) = ask(admin, settings).values()

        def act(said: list[str]) -> str | None:
            admin.poll(0.1)
            said += errors
            if not future.done():
                return None
            try:
                future.result()
            except KafkaException as error:
                said.append(error.args[0].name())
            return "" if not said else None

        return _said(act)

    return probe


def make_a_topic(admin: AdminClient, settings: CommonSettings) -> Mapping[Any, Any]:
    return admin.create_topics([NewTopic(settings.topic(f"new-{time.time_ns()}"), 1, 1)], request_timeout=ANSWER_S)


def move_the_job(admin: AdminClient, settings: CommonSettings) -> Mapping[Any, Any]:
    """Tell Kafka where a job goes on that has no checkpoint."""
    place = TopicPartition(settings.topic(CLICKS), 0, 0)
    group = ConsumerGroupTopicPartitions(f"freshrec-{settings.namespace}", [place])
    return admin.alter_consumer_group_offsets([group], request_timeout=ANSWER_S)


def ask(statement: str) -> Callable[[CommonSettings], str]:
    def probe(settings: CommonSettings) -> str:
        try:
            with cql(settings.cassandra) as session:
                session.execute(statement.format(keyspace=settings.keyspace), timeout=ANSWER_S)
        except (UnreachableError, DriverException) as error:
            return str(error)
        return ""

    return probe


ROW = "(user_id, item_ids) VALUES ('intruder', ['item-000'])"
# what a door leads to: who may pass.
DOORS: dict[str, tuple[Callable[[CommonSettings], str], set[str]]] = {
    "write clicks": (write_to(CLICKS), {"admin", "producer"}),
    "read clicks": (read_from(CLICKS), {"admin", "job", "trainer"}),
    "read dead letters": (read_from(DEAD_LETTERS), {"admin", "job"}),
    "move the job": (administer(move_the_job), {"admin", "job"}),
    "announce a release": (write_to(MODEL_RELEASES), {"admin", "trainer"}),
    "take a release back": (write_to(ROLL_BACKS), {"admin", "job"}),
    "write a dead letter": (write_to(DEAD_LETTERS), {"admin", "job"}),
    "make a topic": (administer(make_a_topic), {"admin"}),
    "read rows": (ask("SELECT * FROM {keyspace}.recommendations"), {"admin", "job", "reader"}),
    "write rows": (ask(f"INSERT INTO {{keyspace}}.recommendations {ROW}"), {"admin", "job"}),
    "remove all rows": (ask("TRUNCATE {keyspace}.trending"), {"admin", "job"}),
    "remove the table": (ask("DROP TABLE IF EXISTS {keyspace}.no_such_table"), {"admin"}),
    "make an account": (ask("CREATE ROLE IF NOT EXISTS intruder"), {"admin"}),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_opens_to_whom_it_should_and_to_nobody_else(door: str, job: RunningJob) -> None:
    probe, allowed = DOORS[door]
    said = {account: probe(of(job, account)) for account in ACCOUNTS}
    assert {account for account, refusal in said.items() if not refusal} == allowed, said


@pytest.mark.parametrize("door", ["write clicks", "make a topic", "read rows"])
def test_whoever_does_not_prove_who_he_is_stays_outside(door: str, job: RunningJob, tmp_path: Path) -> None:
    probe, _ = DOORS[door]
    good = of(job, "admin")
    assert probe(good) == ""
    other_ca = tmp_path / "other.pem"
    other_ca.write_bytes(make_pair("freshrec", None).pem)
    nobody: dict[str, Any] = {"username": None, "password_file": None}
    wrong: dict[str, Any] = {"password": SecretStr("x" * 43), "password_file": None}
    for who, change in {
        "nobody, in the clear": {**nobody, "ca_file": None},
        "nobody": nobody,
        "the admin with a wrong password": wrong,
        "somebody who is not there": {**wrong, "username": "intruder"},
        "what everybody knows": {"username": WELL_KNOWN, "password": SecretStr(WELL_KNOWN), "password_file": None},
        "the admin, to a server that is not ours": {"ca_file": other_ca},
    }.items():
        assert probe(otherwise(good, change)), f"{who} got in"


def test_flinks_page_is_for_those_with_a_certificate_of_ours(job: RunningJob, tmp_path: Path) -> None:
    url = job.stack.flink_url
    keys = job.stack.keys
    assert keys is not None
    assert url.startswith("https://")
    assert FlinkRest(url, keys.client_context()).jobs()
    plain = ssl.create_default_context(cafile=str(keys.ca_file))
    forged = ssl.create_default_context(cafile=str(keys.ca_file))
    own = tmp_path / "own.pem"
    own.write_bytes(make_pair("admin", make_pair("freshrec", None)).pem)
    forged.load_cert_chain(own)
    for address, context in ((url, plain), (url, forged), (url.replace("https", "http"), None)):
        with pytest.raises(UnreachableError):
            FlinkRest(address, context).jobs()


def listening(stack: Stack) -> Iterator[tuple[str, str, int]]:
    """Process, address and port of everything that the processes of a stack listen on."""
    for server in stack.servers():
        leader = psutil.Process(server.process.pid)
        for process in [leader, *leader.children(recursive=True)]:
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    yield f"{server.name}'s {process.name()}", connection.laddr.ip, connection.laddr.port


def test_every_port_is_on_this_machine_alone_and_asks_for_a_certificate_or_a_password(job: RunningJob) -> None:
    found = list(listening(job.stack))
    ports = {port for _, _, port in found}
    known = {port for server in job.stack.servers() for port in server.ports().values()}
    assert known <= ports
    assert len(ports) >= len(known) + 3, "a TaskManager listens, too"
    # These two ask for a password: see above.
    asking = {job.stack.ports.kafka, job.stack.ports.cql}
    for who, address, port in found:
        assert address.removeprefix("::ffff:") == HOST, f"{who} listens on {address}"
        if port in asking:
            continue
        assert "certificate" in _knock(port), f"{who} answers on {port} whoever asks"


def _knock(port: int) -> str:
    """What is said to somebody who comes with TLS and without a certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((HOST, port), ANSWER_S) as raw, context.wrap_socket(raw) as tls:
            tls.send(b"GET / HTTP/1.0\r\n\r\n")
            return repr(tls.recv(100))  # with TLS 1.3 the refusal comes as the first answer
    except OSError as error:
        return str(error)


@pytest.mark.long
def test_a_command_that_is_refused_says_of_whom_and_what(job: RunningJob, tmp_path: Path) -> None:
    def check(account: str, **change: str) -> tuple[int, str]:
        environment = {**os.environ, **job.stack.environment_of(account), "FRESHREC_NAMESPACE": job.namespace, **change}
        command = [sys.executable, "-m", "streaming", "check"]
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    assert check("job") == (0, "")
    code, line = check("trainer")
    assert code == 2
    assert line.startswith(f"error: trainer may not read topic {job.namespace}.")
    assert line.endswith(f" on {job.settings.kafka.bootstrap}; come as another, or give him the right\n")
    wrong = tmp_path / "wrong"
    wrong.write_text("x" * 43)
    wrong.chmod(0o600)
    code, line = check("job", FRESHREC_KAFKA__PASSWORD_FILE=str(wrong))
    assert code == 4
    assert line.endswith("; start it, or correct kafka.bootstrap, kafka.username and its password\n")
    code, line = check("job", FRESHREC_CASSANDRA__PASSWORD_FILE=str(wrong))
    assert code == 4
    assert line.endswith("; correct cassandra.username and cassandra.password\n")


@pytest.mark.long
@pytest.mark.parametrize("account", ["job", "admin"])
def test_a_new_password_counts_at_once_and_the_old_one_no_more(account: str, job: RunningJob) -> None:
    before = of(job, account)
    old: dict[str, Any] = {"password": SecretStr(before.kafka.secret()), "password_file": None}
    _command(job.stack, "rotate", account)
    for door in ("write a dead letter", "read rows"):
        probe, _ = DOORS[door]
        assert probe(of(job, account)) == ""
        job.eventually(f"nobody can {door} with the old password", partial(_refused, probe, otherwise(before, old)))


@pytest.mark.long
def test_the_job_goes_on_with_a_new_password_though_it_has_to_connect_anew(job: RunningJob) -> None:
    _command(job.stack, "rotate", "job")
    for server in ("kafka", "cassandra"):
        job.stack.restart(server)
    job.leave()  # what it was reached through knew an admin's old password
    job.session = connect(job.settings)
    job.producer = Producer({**job.settings.kafka.client(), "linger.ms": 1})
    job.click([Click("after-1", "after", "item-001", int(time.time() * 1000))])
    job.eventually("the row is written", lambda: job.row("after") is not None)


def _command(stack: Stack, *words: str) -> str:
    """What `deploy.local` says for this stack."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.local", *words, "--state", str(stack.state)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "FRESHREC_LOCAL_CHECKPOINT_S": str(stack.plan.checkpoint_s),
            "FRESHREC_LOCAL_DURABLE": str(stack.plan.durable),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def _refused(probe: Callable[[CommonSettings], str], settings: CommonSettings) -> bool:
    return probe(settings) != ""


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────


def secrets_of(keys: Keys) -> dict[str, bytes]:
    """Every secret of a stack by the name of its file; of a key a line of its text."""
    passwords = {file.name: file.read_bytes() for file in keys.folder.glob("*.password")}
    private = {
        file.name: file.read_bytes().splitlines()[1] for file in keys.folder.glob("*.pem") if file != keys.ca_file
    }
    assert len(passwords) == len(ACCOUNTS) + 1
    assert len(private) == 2
    assert all(len(secret) >= 40 for secret in (passwords | private).values())
    return passwords | private


def found_in(content: bytes, secrets: dict[str, bytes]) -> set[str]:
    return {name for name, secret in secrets.items() if secret in content}


def files_of(folder: Path, but: Path) -> Iterable[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink() and but not in file.parents)


def test_no_secret_is_in_a_log_a_checkpoint_a_process_list_or_an_answer_of_flink(
    job: RunningJob, onlooker: Onlooker
) -> None:
    keys, stack = job.stack.keys, job.stack
    assert keys is not None
    secrets = secrets_of(keys)
    job.eventually("a checkpoint is complete", lambda: stack.rest.checkpoint(stack.rest.jobs()[-1].id) is not None)

    open_to_all = [path for path in (keys.folder, *keys.folder.iterdir()) if path.stat().st_mode & 0o077]
    assert not open_to_all
    assert stack.state.stat().st_mode & 0o077 == 0

    where = {
        str(file.relative_to(stack.state)): found_in(_content(file), secrets)
        for file in files_of(stack.state, keys.folder)
    }
    for kind in ("log/kafka.log", "log/cassandra.log", "log/jobmanager.log", "flink/log", "flink/checkpoints"):
        assert any(name.startswith(kind) for name in where), f"no file of {kind} was looked at"
    config = stack.state / "flink" / "conf" / "config.yaml"
    assert {name: found for name, found in where.items() if found} == {
        str(config.relative_to(stack.state)): {"keystore.password"}
    }
    assert config.stat().st_mode & 0o077 == 0

    assert any("StorageTool" in line for line in onlooker.seen), "the onlooker missed the formatting of Kafka"
    assert not {name for line in onlooker.seen for name in found_in(line.encode(), secrets)}

    for server in stack.servers():
        leader = psutil.Process(server.process.pid)
        for process in [leader, *leader.children(recursive=True)]:
            assert not found_in(repr(process.environ()).encode(), secrets), process.name()

    run = stack.rest.jobs()[-1].id
    manager = stack.rest.taskmanagers()[0]
    for path in ("/jobmanager/config", "/jobmanager/environment", "/jobmanager/thread-dump", f"/jobs/{run}/config",
                 f"/jobs/{run}/plan", f"/jobs/{run}", f"/taskmanagers/{manager}"):  # fmt: skip
        assert not found_in(_answer(stack.flink_url + path, keys), secrets), path
    shown = _command(stack, "up", "--secure", "--free-ports", "--servers-only")
    assert f"export FRESHREC_KAFKA__PASSWORD_FILE='{keys.password_file('admin')}'" in shown
    assert not found_in(shown.encode(), secrets)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""  # a checkpoint that was superseded meanwhile


def _answer(url: str, keys: Keys) -> bytes:
    with urllib.request.urlopen(url, timeout=ANSWER_S, context=keys.client_context()) as answer:  # noqa: S310
        content: Any = answer.read()
    assert len(content) > 10
    return bytes(content)
