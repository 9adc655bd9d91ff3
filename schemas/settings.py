"""One tree of settings: a TOML file, then the environment, then flags; later ones win.

The file is `freshrec.toml` in the current folder, or the one FRESHREC_CONFIG names. In the environment a key is
FRESHREC_<KEY> or FRESHREC_<SECTION>__<KEY>. Unknown keys are errors, in every place.
A secret is never a flag, which every user of a machine can read; it comes from the environment, or from a file that
nobody but its owner can read.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from schemas.errors import ConfigError

ENV_PREFIX = "FRESHREC_"
# Read from the environment by other parts than this tree.
_ENV_ELSEWHERE = ("FRESHREC_CONFIG", "FRESHREC_LOCAL_", "FRESHREC_TEST_")
DEFAULT_KEYSPACE = "freshrec"
# Kafka's best way to prove a password without sending it.
SASL_MECHANISM = "SCRAM-SHA-512"
# What the end of a key says about its number: people write 30s, or 0.03 for 30 ms.
_UNITS = {"_ms": "milliseconds", "_hours": "hours", "_days": "days", "_mib": "MiB"}
# Bits of a file's mode by which others than its owner may read it.
_READ_BY_OTHERS = 0o044


class Section(BaseModel):
    """A part of the tree; keys that it does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Login(Section):
    """How to reach a server, and who we are to it: nobody, unless a username is given with a password or a file of one.

    ca_file: certificates (PEM) of who may vouch for the server; with it the connection is encrypted.
    A password is never packed: a job carries its settings to other processes, and each of them reads it anew.
    """

    section: ClassVar[str]
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    ca_file: Path | None = None

    @field_validator("password_file", "ca_file")
    @classmethod
    def _from_anywhere(cls, file: Path | None) -> Path | None:
        """The job's processes have folders of their own."""
        return file.absolute() if file else None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if self.password and self.password_file:
            raise ValueError("password and password_file are both given; keep one of them")
        if bool(self.username) != bool(self.password or self.password_file):
            raise ValueError("username and password belong together; give both or none of them")
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """What pickle takes: all but the password."""
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "password": None}}

    @property
    def variable(self) -> str:
        """The variable of the environment that may hold the password."""
        return f"{ENV_PREFIX}{self.section}__password".upper()

    def secret(self) -> str:
        """The password. Raises ConfigError where its file is missing, empty, or can be read by others."""
        if self.password_file is not None:
            return _secret_in(self.password_file, f"{self.section}.password_file")
        if self.password is not None:
            return self.password.get_secret_value()
        if self.username is None:
            return ""
        if self.variable not in os.environ:
            raise ConfigError(
                f"{self.section}.password is not known to this process of the job",
                f"set {self.variable} in all of them, or name a file of it: {self.section}.password_file",
            )
        return os.environ[self.variable]

    def require_everywhere(self) -> None:
        """Raises ConfigError for a password that the other processes of a job do not find."""
        if self.password is not None and self.variable not in os.environ:
            raise ConfigError(
                f"{self.section}.password stands in {config_file()}, which not every process of the job reads",
                f"write it into a file of its own, and name that: {self.section}.password_file",
            )


class KafkaSettings(Login):
    """Where Kafka is, and where the Schema Registry, if there is one. Who has a username comes over TLS."""

    section = "kafka"
    bootstrap: str = "127.0.0.1:9092"
    schema_registry_url: str | None = None

    @property
    def protocol(self) -> str:
        """Kafka's word for how to talk to it."""
        return "SASL_SSL" if self.username else "SSL" if self.ca_file else "PLAINTEXT"

    def client(self) -> dict[str, Any]:
        """What every client of confluent-kafka begins with. Raises ConfigError as `secret` does."""
        common: dict[str, Any] = {"bootstrap.servers": self.bootstrap}
        if self.protocol != "PLAINTEXT":
            common["security.protocol"] = self.protocol
        if self.ca_file:
            common["ssl.ca.location"] = str(self.ca_file)
        if self.username:
            common |= {"sasl.mechanism": SASL_MECHANISM, "sasl.username": self.username, "sasl.password": self.secret()}
        return common


class CassandraSettings(Login):
    """Where Cassandra is."""

    section = "cassandra"
    hosts: list[str] = Field(["127.0.0.1"], min_length=1)
    port: int = Field(9042, ge=1, le=65535)
    datacenter: str = "datacenter1"


class CommonSettings(BaseSettings):
    """What the job and the trainer share.

    namespace: prefixes every name, for a tenant of shared servers. release_keys: file of public keys (PEM), or folder
    of them (*.pub): only releases signed by one of them count; None: every release counts.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)
    namespace: str = Field("", pattern=r"^([a-z][a-z0-9_]{0,30})?$")
    kafka: KafkaSettings = KafkaSettings()
    cassandra: CassandraSettings = CassandraSettings()
    release_keys: Path | None = None

    def topic(self, name: str) -> str:
        """The topic's name in Kafka: "clicks", or "shop1.clicks" for namespace "shop1"."""
        return f"{self.namespace}.{name}" if self.namespace else name

    @property
    def keyspace(self) -> str:
        """The keyspace in Cassandra: "freshrec", or the namespace."""
        return self.namespace or DEFAULT_KEYSPACE

    @property
    def job_name(self) -> str:
        """The job's name in Flink, and of the Kafka group that reads the events."""
        return f"freshrec-{self.namespace}" if self.namespace else "freshrec"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (the base class passes it)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before environment before file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_file())


S = TypeVar("S", bound=CommonSettings)


def config_file() -> Path:
    """The settings file: FRESHREC_CONFIG, or freshrec.toml here (which may be missing)."""
    return Path(os.environ.get("FRESHREC_CONFIG", "freshrec.toml"))


def load_settings(cls: type[S], **flags: Any) -> S:
    """Read the tree; flags that are None do not count. Raises ConfigError with key, place and nearest key."""
    if "FRESHREC_CONFIG" in os.environ and not config_file().is_file():
        raise ConfigError(f"FRESHREC_CONFIG names {config_file()}, which is no file", "correct it or unset it")
    _refuse_unknown_environment(cls)
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        settings = cls(**given)
    except ValidationError as error:
        raise _explain(cls, error, given) from error
    except SettingsError as error:  # not even the text of a list or a section
        field = next((name for name in cls.model_fields if f'"{name}"' in str(error)), "")
        raise ConfigError(
            f"{_place([field], {})} cannot be read", 'write a list as ["a", "b"], a section key by key'
        ) from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{config_file()}: {error}", "correct the file") from error
    _refuse_open_secrets(settings)
    return settings


def _keys(cls: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.extend(_keys(field.annotation, f"{prefix}{name}."))
    return keys


def nearest(key: str, known: Iterable[str]) -> str:
    """The remedy for an unknown key: the one that was meant, or all that there are."""
    near = difflib.get_close_matches(key, list(known), 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"


def _refuse_unknown_environment(cls: type[CommonSettings]) -> None:
    known = _keys(cls)
    for name in os.environ:
        if not name.startswith(ENV_PREFIX) or name.startswith(_ENV_ELSEWHERE):
            continue
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        # Sections of the other packages are open here and closed there.
        open_section = any(
            key == f or key.startswith(f + ".")
            for f, field in cls.model_fields.items()
            if field.annotation is not None and re.match(r"dict\b", str(field.annotation).replace("<class '", ""))
        )
        if key not in known and not open_section:
            raise ConfigError(f"environment variable {name} is no setting", nearest(key, _keys(cls)))


def _explain(cls: type[CommonSettings], error: ValidationError, flags: Mapping[str, Any]) -> ConfigError:
    first = error.errors()[0]
    # A list's element is named by its place in it.
    keys = [str(part) for part in first["loc"]]
    key, where = ".".join(keys), _place(keys, flags)
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{key} in {where} is no setting", nearest(key, _keys(cls)))
    if first["type"] == "value_error":  # of several keys together
        cause, _, remedy = str(first["ctx"]["error"]).partition("; ")
        return ConfigError(f"{key} in {where}: {cause}", remedy)
    unit = next((f"a number of {word}, without its unit" for end, word in _UNITS.items() if key.endswith(end)), None)
    shown = "a secret" if "password" in key else repr(first["input"])
    return ConfigError(f"{key} = {shown} in {where}: {first['msg']}", f"write it as {unit}" if unit else "correct it")


def _place(keys: Sequence[str], flags: Mapping[str, Any]) -> str:
    """Where a key was given: the last of the places that has it, for that one wins. Of a section: all of its places."""
    variable = ENV_PREFIX + "__".join(keys[:2]).upper()
    within = [variable] if variable in os.environ else [v for v in os.environ if v.startswith(variable + "__")]
    places = ["a flag"] if _given(keys, flags) else []
    places += [f"environment variable {name}" for name in sorted(within)]
    if _given(keys, _in_file()) or not places:
        places.append(str(config_file()))
    return places[0] if len(keys) > 1 else " and ".join(places)


def _given(keys: Sequence[str], tree: Any) -> bool:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return False
        tree = tree[key]
    return True


def _in_file() -> dict[str, Any]:
    return tomllib.loads(config_file().read_text()) if config_file().is_file() else {}


def _refuse_open_secrets(settings: CommonSettings) -> None:
    """Read every secret now, not when the first connection is made; and see that the settings file gives none away."""
    for login in (settings.kafka, settings.cassandra):
        login.secret()
        if login.ca_file is not None:
            _refuse_no_certificates(login.ca_file, f"{login.section}.ca_file")
        if "password" in _in_file().get(login.section, {}):
            _refuse_readable(config_file(), f"{login.section}.password")


def _refuse_no_certificates(file: Path, key: str) -> None:
    try:
        found = "BEGIN CERTIFICATE" in file.read_text()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} names {file}, which cannot be read ({error})", "correct it") from error
    if not found:
        raise ConfigError(f"{key} names {file}, which holds no certificate", "name a file of certificates (PEM)")


def _secret_in(file: Path, key: str) -> str:
    try:
        _refuse_readable(file, key)
        content = file.read_text().strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} names {file}, which cannot be read ({error})", "correct it") from error
    if not content:
        raise ConfigError(f"{key} names {file}, which is empty", "write the secret into it")
    return content


def _refuse_readable(file: Path, key: str) -> None:
    mode = file.stat().st_mode
    if mode & _READ_BY_OTHERS:
        raise ConfigError(
            f"{file}, the secret of {key}, can be read by others (mode {mode & 0o777:o})", f"run chmod 600 {file}"
        )
