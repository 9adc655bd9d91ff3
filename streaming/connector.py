"""connector: how Flink's Kafka connector reaches Kafka, in one place for what is read and what is written.

A table's options travel with the job's graph to every process of Flink, into its memory and its files. The password is
therefore not among them, only where it is: Kafka's client reads it in the process that connects.
"""

from schemas.errors import ConfigError
from schemas.settings import SASL_MECHANISM, KafkaSettings

# The connector carries Kafka's client under names of its own.
_KAFKA = "org.apache.flink.kafka.shaded.org.apache.kafka"
_PROVIDERS = f"{_KAFKA}.common.config.provider"


def options(kafka: KafkaSettings) -> str:
    """The lines of a table's WITH (…) that say where Kafka is and who we are, without the last comma.

    Raises ConfigError for a password that the connector could not read, or not as it is.
    """
    properties = {"bootstrap.servers": kafka.bootstrap}
    if kafka.protocol != "PLAINTEXT":
        properties["security.protocol"] = kafka.protocol
    if kafka.ca_file:
        properties |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(kafka.ca_file)}
    if kafka.username:
        provider, place = _password(kafka)
        properties |= {
            "sasl.mechanism": SASL_MECHANISM,
            "sasl.jaas.config": f"{_KAFKA}.common.security.scram.ScramLoginModule required "
            f'username="{kafka.username}" password="{place}";',
            "config.providers": "secret",
            "config.providers.secret.class": f"{_PROVIDERS}.{provider}",
        }
    lines = ["'connector' = 'kafka'", *(f"'properties.{key}' = {_quoted(value)}" for key, value in properties.items())]
    return ",\n            ".join(lines)


def _password(kafka: KafkaSettings) -> tuple[str, str]:
    """What reads the password, and how it is told where that is."""
    kafka.require_everywhere()
    secret, file = kafka.secret(), kafka.password_file
    if any(mark in f"{kafka.username}{secret}" for mark in '"\\\n'):
        raise ConfigError("kafka.username or its password has a quote, a backslash or a line end", "choose another")
    if file is None:
        return "EnvVarConfigProvider", f"${{secret:{kafka.variable}}}"
    if any(mark in str(file) for mark in ":}"):
        raise ConfigError(f"kafka.password_file = {file} has a colon or a brace in it", "choose another place")
    if file.read_text() != secret:
        raise ConfigError(f"kafka.password_file names {file}, which ends with a space or a line end", "remove that")
    return "DirectoryConfigProvider", f"${{secret:{file.parent}:{file.name}}}"


def _quoted(text: str) -> str:
    """As SQL writes a text."""
    return "'" + text.replace("'", "''") + "'"
