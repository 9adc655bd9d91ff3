"""One tree of settings: later places win; what is unknown is an error naming the nearest key."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from schemas.errors import ConfigError
from schemas.settings import CassandraSettings, CommonSettings, KafkaSettings, Login, load_settings
from streaming.config import Settings

pytestmark = pytest.mark.usefixtures("empty_place")


def write(folder: Path, text: str, name: str = "freshrec.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def refusal(**flags: object) -> str:
    with pytest.raises(ConfigError) as refused:
        load_settings(Settings, **flags)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_without_any_setting_everything_has_a_default() -> None:
    settings = load_settings(CommonSettings)
    assert (settings.kafka.bootstrap, settings.cassandra.port) == ("127.0.0.1:9092", 9042)
    assert settings.cassandra.hosts == ["127.0.0.1"]


def test_flags_win_over_the_environment_and_that_over_the_file(
    empty_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(empty_place, 'namespace = "file"\n[kafka]\nbootstrap = "file:1"\n[cassandra]\nport = 1001\n')
    assert load_settings(Settings).namespace == "file"
    monkeypatch.setenv("FRESHREC_NAMESPACE", "env")
    monkeypatch.setenv("FRESHREC_KAFKA__BOOTSTRAP", "env:1")
    settings = load_settings(Settings, namespace="flag", kafka=None)
    assert (settings.namespace, settings.kafka.bootstrap, settings.cassandra.port) == (
        "flag",
        "env:1",
        1001,
    )
    assert load_settings(Settings).namespace == "env"


def test_sections_of_two_places_are_merged_key_by_key(empty_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(empty_place, "[streaming]\nfreshness_ms = 50\nparallelism = 1\n")
    monkeypatch.setenv("FRESHREC_STREAMING__PARALLELISM", "2")
    section = load_settings(Settings).streaming
    assert (section.freshness_ms, section.parallelism) == (50, 2)


def test_freshrec_config_names_another_file(empty_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRESHREC_CONFIG", str(write(empty_place, 'namespace = "other"\n', "other.toml")))
    assert load_settings(CommonSettings).namespace == "other"


def test_a_flag_that_is_no_setting_is_refused() -> None:
    assert "did you mean namespace?" in refusal(namspace="x")


def test_sections_of_the_other_packages_are_theirs_to_check(empty_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(empty_place, "[trainer]\nanything = 1\n")
    monkeypatch.setenv("FRESHREC_TRAINER__MORE", "2")
    monkeypatch.setenv("FRESHREC_LOCAL_STATE", "/x")
    assert load_settings(Settings).trainer == {"anything": 1, "more": "2"}


def test_a_namespace_prefixes_every_name() -> None:
    plain, shop = load_settings(Settings), load_settings(Settings, namespace="shop1")
    assert (plain.topic("clicks"), plain.keyspace) == ("clicks", "freshrec")
    assert (shop.topic("clicks"), shop.keyspace) == ("shop1.clicks", "shop1")
    assert plain.event_topics + plain.control_topics == [
        "clicks",
        "erasures",
        "model-releases",
        "items",
        "roll-backs",
    ]
    assert shop.event_topics + shop.control_topics == [
        "shop1.clicks",
        "shop1.erasures",
        "shop1.model-releases",
        "shop1.items",
        "shop1.roll-backs",
    ]
    assert (plain.dead_letter_topic, shop.dead_letter_topic) == (
        "dead-letters",
        "shop1.dead-letters",
    )
    assert (plain.job_name, shop.job_name) == ("freshrec", "freshrec-shop1")


@pytest.mark.parametrize("namespace", ["1shop", "shop-1", "shop.1", "x" * 32, '"; DROP KEYSPACE x'])
def test_a_namespace_is_a_plain_name(namespace: str) -> None:
    assert refusal(namespace=namespace).startswith("namespace = ")


def test_settings_do_not_change_once_read() -> None:
    settings = load_settings(Settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.namespace = "x"  # type: ignore[misc]


def test_what_follows_from_the_target_of_freshness_is_told_at_the_start() -> None:
    # Two shards of one TaskManager want 20 ms for their micro-batches alone; of two TaskManagers each has one.
    for target, parallelism, fetch, window, buffers in (
        (30, 1, 6, 20, 2),
        (10, 1, 2, 20, 1),
        (10, 2, 2, 10, 1),
        (3000, 1, 100, 2000, 100),
    ):
        settings = load_settings(Settings, streaming={"freshness_ms": target, "parallelism": parallelism})
        section = settings.streaming
        assert (section.fetch_wait_ms, section.window_ms, section.buffer_timeout_ms) == (fetch, window, buffers)
        told = " | ".join(settings.describe())
        for words in (f"freshness {target} ms", f"within {fetch} ms", f"windows of {window} ms", f"after {buffers} ms"):
            assert words in told


# ── who we are to a server ───────────────────────────────────────────────────────────────────────

SECRET = "correct-horse"  # noqa: S105 (nobody has it)
LOGINS = pytest.mark.parametrize("kind", [KafkaSettings, CassandraSettings])


def secret_file(folder: Path, mode: int = 0o600) -> Path:
    file = write(folder, SECRET, "secret")
    file.chmod(mode)
    return file


def test_clients_of_kafka_come_as_the_settings_say(empty_place: Path) -> None:
    ca = write(empty_place, "-----BEGIN CERTIFICATE-----", "ca.pem")
    place = {"bootstrap.servers": "127.0.0.1:9092"}
    assert KafkaSettings().client() == place
    assert KafkaSettings(ca_file=ca).client() == {**place, "security.protocol": "SSL", "ssl.ca.location": str(ca)}
    named = {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "job", "sasl.password": SECRET}
    for given in ({"password": SECRET}, {"password_file": secret_file(empty_place)}):
        found = KafkaSettings(username="job", ca_file=ca, **given).client()
        assert found == {**place, "security.protocol": "SASL_SSL", "ssl.ca.location": str(ca), **named}
    assert KafkaSettings(username="job", password=SECRET).client() == {
        **place,
        "security.protocol": "SASL_SSL",
        **named,
    }


@LOGINS
def test_a_password_is_not_packed_with_its_settings_and_found_again_in_the_environment(
    kind: type[Login], monkeypatch: pytest.MonkeyPatch
) -> None:
    login = kind(username="job", password=SecretStr(SECRET))
    given: dict[str, Any] = {login.section: login}
    packed = pickle.dumps(CommonSettings(**given))
    assert SECRET.encode() not in packed
    unpacked: Login = getattr(pickle.loads(packed), login.section)  # noqa: S301 (our own bytes)
    with pytest.raises(ConfigError, match=rf"{login.section}\.password is not known to this process"):
        unpacked.secret()
    monkeypatch.setenv(login.variable, SECRET)
    assert unpacked.secret() == SECRET
    assert login.secret() == SECRET, "what was packed keeps its own"


@LOGINS
def test_a_file_of_a_password_is_packed_by_its_name(kind: type[Login], empty_place: Path) -> None:
    login = kind(username="job", password_file=secret_file(empty_place))
    packed = pickle.dumps(login)
    assert SECRET.encode() not in packed
    assert pickle.loads(packed).secret() == SECRET  # noqa: S301 (our own bytes)


@LOGINS
def test_the_job_asks_for_a_password_that_all_its_processes_find(
    kind: type[Login], empty_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind().require_everywhere()
    kind(username="job", password_file=secret_file(empty_place)).require_everywhere()
    login = kind(username="job", password=SecretStr(SECRET))
    with pytest.raises(ConfigError, match=rf"name that: {login.section}\.password_file"):
        login.require_everywhere()
    monkeypatch.setenv(login.variable, SECRET)
    login.require_everywhere()


@pytest.mark.parametrize("section", ["kafka", "cassandra"])
def test_secrets_are_read_at_the_start_and_by_their_owner_alone(section: str, empty_place: Path) -> None:
    write(empty_place, f'[{section}]\nusername = "job"\npassword_file = "secret"\n')
    file = secret_file(empty_place, 0o640)
    assert refusal() == (
        f"{file}, the secret of {section}.password_file, can be read by others (mode 640); run chmod 600 {file}"
    )
    file.chmod(0o600)
    assert getattr(load_settings(Settings), section).secret() == SECRET
    toml = write(empty_place, f'[{section}]\nusername = "job"\npassword = "{SECRET}"\n')
    assert refusal().startswith(f"freshrec.toml, the secret of {section}.password, can be read by others (mode 6")
    toml.chmod(0o600)
    assert getattr(load_settings(Settings), section).secret() == SECRET


@pytest.mark.parametrize("section", ["kafka", "cassandra"])
def test_a_ca_file_holds_certificates(section: str, empty_place: Path) -> None:
    write(empty_place, f'[{section}]\nca_file = "ca.pem"\n')
    file = empty_place / "ca.pem"
    assert refusal().startswith(f"{section}.ca_file names {file}, which cannot be read (")
    write(empty_place, "-----BEGIN PRIVATE KEY-----", "ca.pem")
    assert refusal().startswith(f"{section}.ca_file names {file}, which holds no certificate; ")
    write(empty_place, "-----BEGIN CERTIFICATE-----", "ca.pem")
    assert getattr(load_settings(Settings), section).ca_file == file


def test_no_text_of_the_settings_shows_a_password() -> None:
    settings = load_settings(Settings, kafka={"username": "job", "password": SECRET})
    assert SECRET not in f"{settings} {settings!r} {settings.describe()}"
