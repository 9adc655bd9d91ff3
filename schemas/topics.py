"""The Kafka topics: their names, and what a broker must know to keep them."""

from dataclasses import dataclass, field

CLICKS = "clicks"
ITEMS = "items"
ERASURES = "erasures"
MODEL_RELEASES = "model-releases"
ROLL_BACKS = "roll-backs"
DEAD_LETTERS = "dead-letters"

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class Topic:
    """How one topic is created."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


def topics(click_partitions: int) -> tuple[Topic, ...]:
    """All topics; `clicks` with as many partitions as the job may ever want readers."""
    compacted = {"cleanup.policy": "compact"}
    return (
        # Clicks are the trainer's only source: a year, so that a full retrain stays possible.
        Topic(CLICKS, click_partitions, {"retention.ms": str(366 * DAY_MS)}),
        Topic(ITEMS, 1, compacted),
        # Erasures are read again by every full collection of the trainer and must outlive the clicks.
        Topic(ERASURES, 1, {"retention.ms": str(400 * DAY_MS)}),
        # One partition: the newest release is the last message, for every reader alike.
        Topic(MODEL_RELEASES, 1, {"retention.ms": "-1"}),
        # What was blocked stays so.
        Topic(ROLL_BACKS, 1, {"retention.ms": "-1"}),
        Topic(DEAD_LETTERS, 1, {"retention.ms": str(30 * DAY_MS)}),
    )
