"""Servers that do not answer end a command with 4 and one line: what it is, where, and why."""

import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streaming.__main__ import main as streaming
from trainer.__main__ import main as trainer

NOBODY = "127.0.0.1:9"  # the port to which everything is thrown away


@pytest.fixture(autouse=True)
def nobody_anywhere(empty_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that lead to no server."""
    monkeypatch.setenv("FRESHREC_KAFKA__BOOTSTRAP", NOBODY)
    monkeypatch.setenv("FRESHREC_CASSANDRA__PORT", "9")


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that lets anybody in and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line on stderr of a command that ends with 4."""

    def run(command: Callable[[], None], *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [command.__module__, *argv])
        with pytest.raises(SystemExit) as ended:
            command()
        line = capsys.readouterr().err
        assert ended.value.code == 4, line
        assert line.count("\n") == 1
        return line

    return run


@pytest.mark.parametrize("argv", [("check",), ("inspect", "user-1"), ("replay", "--dead-letters")], ids=lambda a: a[0])
def test_without_kafka(argv: tuple[str, ...], said: Callable[..., str]) -> None:
    line = said(streaming, *argv)
    assert line.startswith(f"error: Kafka at {NOBODY} does not answer (")
    assert line.endswith("; start it, or correct kafka.bootstrap\n")


def test_with_a_kafka_that_never_says_a_word(
    silent: int, monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]
) -> None:
    monkeypatch.setenv("FRESHREC_KAFKA__BOOTSTRAP", f"127.0.0.1:{silent}")
    assert said(streaming, "check").startswith(f"error: Kafka at 127.0.0.1:{silent} does not answer (")


def test_the_trainer_without_kafka(said: Callable[..., str]) -> None:
    assert said(trainer, "collect").startswith(f"trainer: Kafka at {NOBODY} ")


def test_without_cassandra(said: Callable[..., str]) -> None:
    line = said(streaming, "lookup", "user-1")
    assert line.startswith(f"error: Cassandra at {NOBODY} does not answer (")
    assert line.endswith("; start it, or correct cassandra.hosts, cassandra.port and cassandra.datacenter\n")


def test_with_a_cassandra_whose_name_nobody_knows(monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]) -> None:
    monkeypatch.setenv("FRESHREC_CASSANDRA__HOSTS", '["nowhere.invalid"]')
    assert said(streaming, "lookup", "user-1").startswith(
        "error: Cassandra at nowhere.invalid:9 does not answer (its name cannot be resolved); "
    )


def test_with_a_cassandra_that_never_says_a_word(
    silent: int, monkeypatch: pytest.MonkeyPatch, said: Callable[..., str]
) -> None:
    monkeypatch.setenv("FRESHREC_CASSANDRA__PORT", str(silent))
    assert said(streaming, "lookup", "user-1").startswith(f"error: Cassandra at 127.0.0.1:{silent} does not answer (")


def test_with_a_schema_registry_that_does_not_answer_nothing_is_read_as_a_dead_letter() -> None:
    """The job stops at what it cannot know, and goes on when the registry is back: see test_registry."""
    from schemas.click import Click, decode_clicks, encode_click
    from schemas.errors import UnreachableError
    from streaming.registry import registry

    framed = b"\0\0\0\0\7" + encode_click(Click("e", "u", "i", 1_700_000_000_000))[10:]
    with pytest.raises(
        UnreachableError, match=rf"the Schema Registry does not answer at http://{NOBODY}/schemas/ids/7"
    ):
        decode_clicks([framed], [b"u"], 1_700_000_000_000, registry(f"http://{NOBODY}"))
