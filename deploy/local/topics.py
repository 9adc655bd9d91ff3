"""Creates the topics of the contract, for one tenant."""

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from deploy.local.kafka import ANSWER_S, QUIET, create
from schemas.errors import ContractError, UnreachableError
from schemas.settings import CommonSettings
from schemas.topics import topics


def create_topics(settings: CommonSettings, click_partitions: int, replicas: int = 1) -> None:
    """Create what is missing; what exists stays as it is.

    Raises UnreachableError when Kafka does not answer, ContractError when `clicks` has fewer
    partitions than asked.
    """
    try:
        admin = AdminClient({**settings.kafka.client(), **QUIET})
        existing = admin.list_topics(timeout=ANSWER_S).topics
        wanted = {settings.topic(topic.name): topic for topic in topics(click_partitions)}
        missing = [
            NewTopic(name, topic.partitions, replicas, config=topic.config)
            for name, topic in wanted.items()
            if name not in existing
        ]
        if missing:
            create(admin, missing)
    except KafkaException as error:
        raise UnreachableError(
            f"Kafka at {settings.kafka.bootstrap} creates no topics: {error.args[0].str()}",
            "see that it runs",
        ) from error
    for name, topic in wanted.items():
        if name in existing and (found := len(existing[name].partitions)) < topic.partitions:
            raise ContractError(
                f"topic {name} has {found} partitions, not {topic.partitions}",
                "ask for fewer partitions, or start with an empty Kafka",
            )
