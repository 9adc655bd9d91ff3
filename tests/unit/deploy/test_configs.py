"""Configurations: every placeholder filled, nothing on other interfaces than the loopback."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.local.cassandra import DURABLE, QUICK
from deploy.local.server import HERE, render


def test_a_value_that_no_placeholder_takes_is_an_error(tmp_path: Path) -> None:
    template = tmp_path / "t"
    template.write_text("port=${port}")
    with pytest.raises(ValueError, match=r"does not use \['prot'\]"):
        render(template, tmp_path / "out", port=1, prot=2)


def test_a_placeholder_without_a_value_is_an_error(tmp_path: Path) -> None:
    template = tmp_path / "t"
    template.write_text("port=${port} data=${data}")
    with pytest.raises(KeyError, match="data"):
        render(template, tmp_path / "out", port=1)


def test_kafka_listens_on_the_loopback_with_the_ports_given(tmp_path: Path) -> None:
    target = render(
        HERE / "kafka" / "server.properties",
        tmp_path / "k",
        kafka_port=1234,
        controller_port=1235,
        data="/d",
    )
    lines = dict(line.split("=", 1) for line in target.read_text().splitlines() if line and line[0] != "#")
    assert lines["listeners"] == "CLIENTS://127.0.0.1:1234,CONTROLLER://127.0.0.1:1235"
    assert lines["log.dirs"] == "/d"
    assert lines["auto.create.topics.enable"] == "false"


@pytest.mark.parametrize(("sync", "wanted"), [(DURABLE, ("batch", None)), (QUICK, ("periodic", "1s"))])
def test_cassandra_listens_on_the_loopback_with_the_ports_given_and_acknowledges_as_told(
    tmp_path: Path, sync: str, wanted: tuple[str, str | None]
) -> None:
    target = render(
        HERE / "cassandra" / "cassandra.yaml",
        tmp_path / "c",
        cql_port=1234,
        storage_port=1235,
        data="/d",
        commitlog_sync=sync,
    )
    config = yaml.safe_load(target.read_text())
    assert (config["commitlog_sync"], config.get("commitlog_sync_period")) == wanted
    assert (config["rpc_address"], config["native_transport_port"]) == ("127.0.0.1", 1234)
    assert (config["listen_address"], config["storage_port"]) == ("127.0.0.1", 1235)
    assert config["seed_provider"][0]["parameters"] == [{"seeds": "127.0.0.1:1235"}]
    assert config["data_file_directories"] == ["/d/data"]


def flink_config(folder: Path, addition: Path | None = None, **values: object) -> dict[str, Any]:
    """Flink's configuration as it reads it, with what is added to it."""
    target = render(
        HERE / "flink" / "config.yaml",
        folder / "f",
        addition,
        rpc_port=1,
        blob_port=2,
        rest_port=3,
        parallelism=4,
        checkpoint_interval="7 s",
        checkpoints="file:///with: colon/c",
        savepoints="file:///s",
        tmp="/t",
        **values,
    )
    config: dict[str, Any] = yaml.safe_load(target.read_text())
    return config


def test_flink_listens_on_the_loopback_and_keeps_its_memory_budget(tmp_path: Path) -> None:
    config = flink_config(tmp_path)
    assert {config[key] for key in config if key.endswith("bind-host") or key == "rest.bind-address"} == {"127.0.0.1"}
    assert config["execution.checkpointing.dir"] == "file:///with: colon/c"
    assert (config["rest.port"], config["parallelism.default"]) == (3, 4)
    assert config["execution.checkpointing.interval"] == "7 s"
    parts = {
        key: int(value[:-1])
        for key, value in config.items()
        if key.startswith("taskmanager.memory.") and value[-1] == "m"
    }
    framework = 128 + 128  # Flink's own heap and buffers
    used = framework + sum(
        parts[f"taskmanager.memory.{part}"]
        for part in (
            "task.heap.size",
            "task.off-heap.size",
            "managed.size",
            "network.max",
            "jvm-metaspace.size",
        )
    )
    overhead = parts["taskmanager.memory.process.size"] - used
    assert parts["taskmanager.memory.jvm-overhead.min"] <= overhead <= parts["taskmanager.memory.jvm-overhead.max"]


def test_what_is_rendered_is_its_owners_alone_and_replaced_in_one_step(tmp_path: Path) -> None:
    template, addition = tmp_path / "t", tmp_path / "a"
    template.write_text("port=${port}\n")
    addition.write_text("password=${password}\n")
    target = tmp_path / "new" / "out"
    for password in ("one", "two"):
        render(template, target, addition, port=1, password=password)
        assert target.read_text() == f"port=1\npassword={password}\n"
        assert target.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in target.parent.iterdir()] == ["out"]


def test_a_secure_kafka_lets_nobody_in_unasked(tmp_path: Path) -> None:
    folder = HERE / "kafka"
    target = render(
        folder / "server.properties",
        tmp_path / "k",
        folder / "secure.properties",
        kafka_port=1234,
        controller_port=1235,
        node_port=1236,
        data="/d",
        keys="/k",
    )
    # Of a key that stands twice Java takes the last.
    lines = dict(line.split("=", 1) for line in target.read_text().splitlines() if line and line[0] != "#")
    listeners = dict(one.split("://") for one in lines["listeners"].split(","))
    assert listeners == {"CLIENTS": "127.0.0.1:1234", "CONTROLLER": "127.0.0.1:1235", "NODE": "127.0.0.1:1236"}
    protocols = dict(one.split(":") for one in lines["listener.security.protocol.map"].split(","))
    assert protocols == {"CLIENTS": "SASL_SSL", "CONTROLLER": "SSL", "NODE": "SSL"}
    assert {lines[f"listener.name.{name}.ssl.client.auth"] for name in ("controller", "node")} == {"required"}
    assert lines["authorizer.class.name"].endswith(".StandardAuthorizer")
    assert lines["allow.everyone.if.no.acl.found"] == "false"
    assert lines["super.users"] == "User:admin;User:server"
    assert "password" not in target.read_text().replace("# Clients say who they are by a password", "")


def test_a_secure_cassandra_lets_nobody_in_unasked(tmp_path: Path) -> None:
    folder = HERE / "cassandra"
    target = render(
        folder / "cassandra.yaml",
        tmp_path / "c",
        folder / "secure.yaml",
        cql_port=1234,
        storage_port=1235,
        data="/d",
        commitlog_sync=QUICK,
        keys="/k",
    )
    config = yaml.safe_load(target.read_text())
    assert (config["authenticator"], config["authorizer"]) == ("PasswordAuthenticator", "CassandraAuthorizer")
    assert config["client_encryption_options"]["enabled"] is True
    assert config["client_encryption_options"]["optional"] is False
    assert config["server_encryption_options"]["internode_encryption"] == "all"
    assert config["server_encryption_options"]["require_client_auth"] is True


def test_a_secure_flink_asks_for_certificates_outside_and_inside(tmp_path: Path) -> None:
    config = flink_config(tmp_path, HERE / "flink" / "secure.yaml", keys="/k", password="-")  # noqa: S106
    wanted = ("rest.enabled", "rest.authentication-enabled", "internal.enabled")
    assert [config[f"security.ssl.{key}"] for key in wanted] == [True, True, True]
    # Who may look at the page is not for that one of Flink's processes.
    assert config["security.ssl.internal.truststore"] != config["security.ssl.rest.truststore"]
