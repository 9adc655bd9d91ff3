"""Kafka: one broker in KRaft mode."""

import base64
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy.local import tools
from deploy.local.ports import HOST, Ports, answers
from deploy.local.process import Process
from deploy.local.server import HERE, Server, render
from schemas.errors import UnreachableError

CONFIGS = HERE / "kafka"
# A record goes through it when the broker must prove that it takes and gives.
HEALTH_TOPIC = "freshrec-health"
ANSWER_S = 5.0
# librdkafka reports every refused connection on stderr; whether it answers is what we ask.
QUIET = {"log_level": 0, "socket.connection.setup.timeout.ms": 5000}


class Kafka(Server):
    """The broker; data and configuration in `STATE/kafka`."""

    name = "kafka"

    def __init__(self, state: Path, jars: Path, ports: Ports) -> None:
        self._folder = state / "kafka"
        self._jars = jars
        self._ports = ports
        self.process = Process(self.name, state)

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self._ports.kafka}"

    def ports(self) -> Mapping[str, int]:
        return {"Kafka": self._ports.kafka, "Kafka's controller": self._ports.kafka_controller}

    def start(self) -> None:
        jars = tools.jars("kafka", self._jars)
        data = self._folder / "data"
        config = render(
            CONFIGS / "server.properties",
            self._folder / "server.properties",
            kafka_port=self._ports.kafka,
            controller_port=self._ports.kafka_controller,
            data=data,
        )
        java = [
            tools.java(),
            f"@{CONFIGS / 'jvm.options'}",
            f"-Dlog4j2.configurationFile={CONFIGS}/log4j2.properties",
        ]
        java += ["-cp", f"{jars}/*"]
        if not (data / "meta.properties").exists():
            cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
            command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(config)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
                raise UnreachableError(f"Kafka cannot format {data}: {said[-1]}", "look at that folder, or down --wipe")
        self.process.start([*java, "kafka.Kafka", str(config)])

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
        admin = AdminClient({"bootstrap.servers": self.bootstrap, **QUIET})
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

        producer = Producer({"bootstrap.servers": self.bootstrap, "acks": "all", **QUIET})
        producer.produce(HEALTH_TOPIC, token, partition=0, on_delivery=delivered)
        if producer.flush(ANSWER_S) or not offsets:
            raise UnreachableError(f"it acknowledged no record: {failures or 'no answer'}", "look at its log")
        reading = {"group.id": HEALTH_TOPIC, "enable.auto.commit": False}
        consumer = Consumer({"bootstrap.servers": self.bootstrap, **reading, **QUIET})
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
