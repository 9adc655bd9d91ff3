"""One tree of settings: a TOML file, then the environment, then flags; later ones win.

The file is `freshrec.toml` in the current folder, or the one FRESHREC_CONFIG names. In the environment a key is
FRESHREC_<KEY> or FRESHREC_<SECTION>__<KEY>. Unknown keys are errors, in every place.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from schemas.errors import ConfigError

ENV_PREFIX = "FRESHREC_"
# Read from the environment by other parts than this tree.
_ENV_ELSEWHERE = ("FRESHREC_CONFIG", "FRESHREC_LOCAL_")
DEFAULT_KEYSPACE = "freshrec"


class Section(BaseModel):
    """A part of the tree; keys that it does not know are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(Section):
    """Where Kafka is, and where the Schema Registry, if there is one."""

    bootstrap: str = "127.0.0.1:9092"
    schema_registry_url: str | None = None


class CassandraSettings(Section):
    """Where Cassandra is."""

    hosts: list[str] = ["127.0.0.1"]
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
    try:
        return cls(**{key: value for key, value in flags.items() if value is not None})
    except ValidationError as error:
        raise _explain(cls, error) from error
    except ValueError as error:
        raise ConfigError(f"{config_file()}: {error}", "correct the file") from error


def _keys(cls: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in cls.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys.extend(_keys(field.annotation, f"{prefix}{name}."))
    return keys


def _nearest(cls: type[BaseModel], key: str) -> str:
    near = difflib.get_close_matches(key, _keys(cls), 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known keys: {', '.join(_keys(cls))}"


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
            raise ConfigError(f"environment variable {name} is no setting", _nearest(cls, key))


def _explain(cls: type[CommonSettings], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    where = f"{config_file()}, the environment ({ENV_PREFIX}…) or a flag"
    if first["type"] == "extra_forbidden":
        return ConfigError(f"{key} in {where} is no setting", _nearest(cls, key))
    return ConfigError(f"{key} = {first['input']!r} in {where}: {first['msg']}", "correct the value")
