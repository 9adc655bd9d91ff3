"""The few dials of a local stack: flags first, then FRESHREC_LOCAL_… in the environment."""

import os
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from deploy.local.ports import DEFAULT_BASE, MAX_TASKMANAGERS
from schemas.errors import ConfigError
from schemas.settings import CommonSettings, nearest

REPOSITORY = Path(__file__).resolve().parents[2]


class LocalSettings(BaseSettings):
    """Where the stack lives and how large it is."""

    model_config = SettingsConfigDict(env_prefix="FRESHREC_LOCAL_", extra="forbid", frozen=True)

    state: Path = REPOSITORY / ".freshrec"
    # Apart from the state folder: stacks beside each other share it, and wiping a state folder
    # leaves it.
    jars: Path = REPOSITORY / ".freshrec" / "jars"
    port_base: int = Field(DEFAULT_BASE, ge=1024)
    # One slot, one Python interpreter each: the parallelism of the job, and how many wait warm
    # beside.
    taskmanagers: int = Field(1, ge=1, le=MAX_TASKMANAGERS)
    spares: int = Field(0, ge=0, le=MAX_TASKMANAGERS)
    # As many readers as the job may ever want; the number of a topic's partitions can only grow.
    click_partitions: int = Field(8, ge=1)
    # What a crash makes the job read again, at most, in seconds of events. A checkpoint holds up the flow for some
    # tenths of a second: every 10 s, that is some hundredths of all rows; every 30 s about one.
    checkpoint_s: int = Field(30, ge=1)
    # Whether Cassandra answers only when the disk has what was written: a killed node then loses nothing that it
    # acknowledged, and writing takes three times as long. With replicas nobody needs it.
    durable: bool = False
    # Prometheus endpoints of Flink. Off by default: its reporter listens on every interface.
    metrics: bool = False
    # TLS, accounts and rights at every door.
    secure: bool = False


class ProjectSettings(CommonSettings):
    """The project's settings with the sections of the job and the trainer left unread."""

    streaming: dict[str, Any] = Field(default_factory=dict)
    trainer: dict[str, Any] = Field(default_factory=dict)


class GivenSettings(CommonSettings):
    """Settings from arguments alone: neither a file nor the environment has a say."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (the signature is given)
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def load_local_settings(**flags: Any) -> LocalSettings:
    """Flags that are None do not count. Raises ConfigError naming the key."""
    prefix = str(LocalSettings.model_config["env_prefix"])
    for name in os.environ:
        if name.startswith(prefix) and name.removeprefix(prefix).lower() not in LocalSettings.model_fields:
            raise ConfigError(
                f"environment variable {name} is no setting",
                nearest(name.removeprefix(prefix).lower(), LocalSettings.model_fields),
            )
    given = {key: value for key, value in flags.items() if value is not None}
    try:
        settings = LocalSettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"local setting {key} = {first['input']!r}: {first['msg']}",
            f"correct the flag or FRESHREC_LOCAL_{key.upper()}",
        ) from error
    if settings.taskmanagers + settings.spares > MAX_TASKMANAGERS:
        raise ConfigError(
            f"{settings.taskmanagers} TaskManagers and {settings.spares} spares are too many",
            f"take {MAX_TASKMANAGERS} at most",
        )
    if settings.secure and settings.metrics:
        raise ConfigError(
            "metrics are for everybody who can reach this machine, and secure is not", "leave one of them"
        )
    return settings
