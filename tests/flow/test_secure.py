"""A stack that was started with --secure: who has a right gets in, nobody else does, and no secret lies about."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import Producer
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
from schemas.topics import CLICKS, MODEL_RELEASES
from streaming.table import connect
from tests.doors import ANSWER_S, DOORS, Probe
from tests.harness import RunningJob, servers
from tests.leaks import Onlooker, content_of, files_of, found_in, secrets_of
from tests.releases import make_release
from tests.traffic import FIRST, make_clicks, told
from trainer.broker import reader, send
from trainer.config import Settings as TrainerSettings


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
    said = job.stack.server("taskmanager-1").process.log_file.read_text()
    assert "lag:" not in said, "the job may ask where its topics end"


# ── doors ────────────────────────────────────────────────────────────────────────────────────────


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


def _refused(probe: Probe, settings: CommonSettings) -> bool:
    return probe(settings) != ""


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────


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
        str(file.relative_to(stack.state)): found_in(content_of(file), secrets)
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


def _answer(url: str, keys: Keys) -> bytes:
    with urllib.request.urlopen(url, timeout=ANSWER_S, context=keys.client_context()) as answer:  # noqa: S310
        content: Any = answer.read()
    assert len(content) > 10
    return bytes(content)
