"""Ports: one base, all distinct, and a taken one is named before anything starts."""

import socket
from collections.abc import Iterator

import pytest

from deploy.local.ports import (
    FREE_BASES,
    HOST,
    MAX_TASKMANAGERS,
    SPAN,
    Ports,
    answers,
    free_base,
    is_free,
    require_free,
)
from schemas.errors import ConfigError, UnreachableError


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        yield server.getsockname()[1]


def test_the_default_base_gives_kafka_and_cassandra_their_usual_ports() -> None:
    assert (Ports().kafka, Ports().cql, Ports().flink_rest) == (9092, 9042, 9081)


def test_no_two_servers_of_a_stack_share_a_port_and_all_lie_in_its_span() -> None:
    ports = Ports(20_000)
    every = [
        ports.kafka,
        ports.kafka_controller,
        ports.cql,
        ports.cassandra_storage,
        ports.flink_rest,
        ports.flink_rpc,
        ports.flink_blobs,
        ports.jobmanager_metrics,
        *(ports.taskmanager_metrics(number) for number in range(1, MAX_TASKMANAGERS + 1)),
    ]
    assert len(set(every)) == len(every)
    assert all(20_000 <= port < 20_000 + SPAN for port in every)


@pytest.mark.parametrize("base", [0, 1023, 65_436, -1])
def test_a_base_that_leaves_no_room_is_refused(base: int) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        Ports(base)


def test_a_taken_port_is_named_with_its_purpose_and_a_remedy(listening: int) -> None:
    assert not is_free(listening)
    assert answers(listening)
    with pytest.raises(UnreachableError, match=rf"port {listening} \(Kafka\) is taken.*--free-ports"):
        require_free({"Kafka": listening})


def test_a_free_base_is_free_and_below_the_ports_the_system_gives_away() -> None:
    base = free_base()
    assert base in FREE_BASES
    require_free({str(port): port for port in range(base, base + SPAN)})


def test_a_port_that_was_just_closed_is_free_again() -> None:
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection((HOST, port)) as client, server.accept()[0]:
            client.sendall(b"x")
    assert is_free(port)
    assert not answers(port)
