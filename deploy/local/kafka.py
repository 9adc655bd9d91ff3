"""Kafka: one broker in KRaft mode."""

import base64
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy.local import tools
from deploy.local.ports import Ports, answers
from deploy.local.process import Process
from deploy.local.secure import Keys
from deploy.local.server import HERE, Server, render, replace_secret
from schemas.errors import UnreachableError
from schemas.settings import KafkaSettings

CONFIGS = HERE / "kafka"
# A record goes through it when the broker must prove that it takes and gives.
HEALTH_TOPIC = "freshrec-health"
ANSWER_S = 5.0
# librdkafka reports every refused connection on stderr; whether it answers is what we ask.
QUIET = {"log_level": 0, "socket.connection.setup.timeout.ms": 5000}


class Kafka(Server):
    """The broker; data and configuration in `STATE/kafka`."""

    name = "kafka"

    def __init__(self, state: Path, jars: Path, ports: Ports, settings: KafkaSettings, keys: Keys | None) -> None:
        """settings: of a client that may do everything. keys: None where everybody may."""
        self._folder = state / "kafka"
        self._jars = jars
        self._ports = ports
        self._settings = settings
        self._keys = keys
        self.process = Process(self.name, state)

    def ports(self) -> Mapping[str, int]:
        node = {"Kafka's own port": self._ports.kafka_node} if self._keys else {}
        return {"Kafka": self._ports.kafka, "Kafka's controller": self._ports.kafka_controller, **node}

    def start(self) -> None:
        jars = tools.jars("kafka", self._jars)
        data = self._folder / "data"
        config = render(
            CONFIGS / "server.properties",
            self._folder / "server.properties",
            CONFIGS / "secure.properties" if self._keys else None,
            kafka_port=self._ports.kafka,
            controller_port=self._ports.kafka_controller,
            data=data,
            **({"node_port": self._ports.kafka_node, "keys": self._keys.folder} if self._keys else {}),
        )
        java = [
            tools.java(),
            f"@{CONFIGS / 'jvm.options'}",
            f"-Dlog4j2.configurationFile={CONFIGS}/log4j2.properties",
        ]
        java += ["-cp", f"{jars}/*"]
        if not (data / "meta.properties").exists():
            self._format(java, config, data)
        self.process.start([*java, "kafka.Kafka", str(config)])

    def _format(self, java: Sequence[str], config: Path, data: Path) -> None:
        """Make the node's storage, and in it the admin, without whom nobody could let anybody else in."""
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
        command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)]
        # Its arguments may come from a file, an argument a line: on the command line everybody could read the password.
        arguments = self._folder / "format.arguments"
        if self._keys:
            admin = f"SCRAM-SHA-512=[name={self._settings.username},password={self._settings.secret()}]"
            replace_secret(arguments, f"--add-scram\n{admin}\n".encode())
            command.append(f"@{arguments}")
        done = subprocess.run(command, capture_output=True, text=True)
        arguments.unlink(missing_ok=True)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise UnreachableError(f"Kafka cannot format {data}: {said[-1]}", "look at that folder, or down --wipe")

    def trouble(self) -> str | None:
        if not answers(self._ports.kafka):
            return "it accepts no connections"
        try:
            self._round_trip()
        except (KafkaException, UnreachableError) as error:
            return str(error)
        return None

    def _round_trip(self) -> None:
        """Write a record and read it again."""
        client = {**self._settings.client(), **QUIET}
        admin = AdminClient(client)
        if HEALTH_TOPIC not in admin.list_topics(timeout=ANSWER_S).topics:
            create(admin, [NewTopic(HEALTH_TOPIC, 1, 1, config={"retention.ms": "3600000"})])
        token = uuid.uuid4().bytes
        offsets: list[int] = []
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            offset = message.offset()
            if error is not None:
                failures.append(error)
            elif offset is not None:
                offsets.append(offset)

        producer = Producer({**client, "acks": "all"})
        producer.produce(HEALTH_TOPIC, token, partition=0, on_delivery=delivered)
        if producer.flush(ANSWER_S) or not offsets:
            raise UnreachableError(f"it acknowledged no record: {failures or 'no answer'}", "look at its log")
        reading = {"group.id": HEALTH_TOPIC, "enable.auto.commit": False}
        consumer = Consumer({**client, **reading})
        try:
            consumer.assign([TopicPartition(HEALTH_TOPIC, 0, offsets[0])])
            deadline = time.monotonic() + ANSWER_S
            while time.monotonic() < deadline:
                message = consumer.poll(0.1)
                if message is not None and message.error() is None and message.value() == token:
                    return
        finally:
            consumer.close()
        raise UnreachableError("it did not give back the record that it took", "look at its log")


def create(admin: AdminClient, topics: list[NewTopic]) -> None:
    """Create topics and wait until it is done; one that exists is fine. Raises KafkaException."""
    for future in admin.create_topics(topics, request_timeout=30).values():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
