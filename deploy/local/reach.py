"""How any process of the project reaches a stack, and as whom: as settings, and as variables of the environment."""

import json
from collections.abc import Mapping
from typing import Any

from deploy.local.config import GivenSettings
from deploy.local.ports import HOST, Ports
from deploy.local.secure import Keys
from schemas.settings import CassandraSettings, CommonSettings, KafkaSettings

SECTIONS = ("KAFKA", "CASSANDRA")
LOGIN = ("USERNAME", "PASSWORD", "PASSWORD_FILE", "CA_FILE")


def settings_for(namespace: str, ports: Ports, keys: Keys | None, account: str) -> CommonSettings:
    """Settings of one of ACCOUNTS; without keys all are alike."""
    login = _login(keys, account)
    return GivenSettings(
        namespace=namespace,
        kafka=KafkaSettings(bootstrap=f"{HOST}:{ports.kafka}", **login),
        cassandra=CassandraSettings(hosts=[HOST], port=ports.cql, **login),
    )


def environment_for(namespace: str, ports: Ports, keys: Keys | None, account: str) -> dict[str, str]:
    """The same as variables. They name files of secrets, and hold none."""
    login = {
        f"FRESHREC_{section}__{key.upper()}": str(value)
        for section in SECTIONS
        for key, value in _login(keys, account).items()
    }
    return {
        "FRESHREC_NAMESPACE": namespace,
        "FRESHREC_KAFKA__BOOTSTRAP": f"{HOST}:{ports.kafka}",
        "FRESHREC_CASSANDRA__HOSTS": json.dumps([HOST]),
        "FRESHREC_CASSANDRA__PORT": str(ports.cql),
        **login,
    }


def without_logins(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without who somebody is to other servers than those of a stack."""
    logins = {f"FRESHREC_{section}__{key}" for section in SECTIONS for key in LOGIN}
    return {name: value for name, value in environment.items() if name not in logins}


def _login(keys: Keys | None, account: str) -> dict[str, Any]:
    if keys is None:
        return {}
    return {"username": account, "password_file": keys.password_file(account), "ca_file": keys.ca_file}
