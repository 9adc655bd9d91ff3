"""How any process of the project reaches a stack, and as whom: as settings, and as variables of the environment."""

import json
from typing import Any

from deploy.local.config import GivenSettings
from deploy.local.ports import HOST, Ports
from deploy.local.secure import Keys
from schemas.settings import CassandraSettings, CommonSettings, KafkaSettings


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
        for section in ("KAFKA", "CASSANDRA")
        for key, value in _login(keys, account).items()
    }
    return {
        "FRESHREC_NAMESPACE": namespace,
        "FRESHREC_KAFKA__BOOTSTRAP": f"{HOST}:{ports.kafka}",
        "FRESHREC_CASSANDRA__HOSTS": json.dumps([HOST]),
        "FRESHREC_CASSANDRA__PORT": str(ports.cql),
        **login,
    }


def _login(keys: Keys | None, account: str) -> dict[str, Any]:
    if keys is None:
        return {}
    return {"username": account, "password_file": keys.password_file(account), "ca_file": keys.ca_file}
