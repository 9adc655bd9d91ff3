"""How Flink reaches Kafka: all that a table's options say, and what they must never say."""

from pathlib import Path

import pytest

from schemas.errors import ConfigError
from schemas.settings import KafkaSettings
from streaming.connector import options

SECRET = "correct-horse"  # noqa: S105 (nobody has it)
VARIABLE = "FRESHREC_KAFKA__PASSWORD"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "job.password"
    file.write_text(SECRET)
    file.chmod(0o600)
    return file


def told(kafka: KafkaSettings) -> dict[str, str]:
    lines = [line.strip() for line in options(kafka).split(",\n")]
    return {key.strip("'"): value.strip("'") for key, _, value in (line.partition(" = ") for line in lines)}


def refusal(kafka: KafkaSettings) -> str:
    with pytest.raises(ConfigError) as refused:
        options(kafka)
    assert SECRET not in str(refused.value)
    return str(refused.value)


def test_without_a_name_only_the_address_is_said() -> None:
    assert told(KafkaSettings(bootstrap="k:1")) == {"connector": "kafka", "properties.bootstrap.servers": "k:1"}


def test_with_certificates_alone_the_connection_is_encrypted(tmp_path: Path) -> None:
    said = told(KafkaSettings(ca_file=tmp_path / "it's.pem"))
    assert said["properties.security.protocol"] == "SSL"
    assert said["properties.ssl.truststore.type"] == "PEM"
    assert said["properties.ssl.truststore.location"] == f"{tmp_path}/it''s.pem"


def test_the_password_stays_in_its_file(file: Path) -> None:
    kafka = KafkaSettings(username="job", password_file=file)
    assert SECRET not in options(kafka)
    said = told(kafka)
    assert said["properties.security.protocol"] == "SASL_SSL"
    assert said["properties.sasl.mechanism"] == "SCRAM-SHA-512"
    assert said["properties.sasl.jaas.config"].endswith(
        f'username="job" password="${{secret:{file.parent}:{file.name}}}";'
    )
    assert said["properties.config.providers.secret.class"].endswith(".DirectoryConfigProvider")


def test_the_password_stays_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, SECRET)
    kafka = KafkaSettings(username="job", password=SECRET)
    assert SECRET not in options(kafka)
    said = told(kafka)
    assert said["properties.sasl.jaas.config"].endswith(f'password="${{secret:{VARIABLE}}}";')
    assert said["properties.config.providers.secret.class"].endswith(".EnvVarConfigProvider")


def test_a_password_that_flinks_processes_would_not_find_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    said = refusal(KafkaSettings(username="job", password=SECRET))
    assert said.startswith("kafka.password stands in ")
    assert said.endswith("write it into a file of its own, and name that: kafka.password_file")


@pytest.mark.parametrize("end", ["\n", " "])
def test_a_password_that_the_connector_would_read_otherwise_is_refused(end: str, file: Path) -> None:
    file.write_text(SECRET + end)
    assert "ends with a space or a line end; remove that" in refusal(KafkaSettings(username="job", password_file=file))


@pytest.mark.parametrize("mark", ['"', "\\"])
def test_marks_that_end_a_password_too_early_are_refused(mark: str, file: Path) -> None:
    file.write_text(SECRET + mark + "x")
    assert "has a quote" in refusal(KafkaSettings(username="job", password_file=file))


def test_a_file_in_a_place_that_cannot_be_told_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a:b"
    file.write_text(SECRET)
    file.chmod(0o600)
    assert "has a colon or a brace in it" in refusal(KafkaSettings(username="job", password_file=file))
