"""The job's settings: few dials, the rest derived from them."""

from importlib import metadata
from typing import Any

from pydantic import Field, model_validator

from schemas.settings import CommonSettings, Section
from schemas.signing import read_trust
from schemas.topics import CLICKS, DEAD_LETTERS, ERASURES, ITEMS, MODEL_RELEASES, ROLL_BACKS

DAY_S = 24 * 3600
# What a micro-batch costs a core however few events it holds, ms: calls of numpy and of compiled loops, a run of the
# model, a write. Set too low, many shards overload a job that has little to do; too high, they make rows late for no
# reason.
MICRO_BATCH_MS = 5


def job_version() -> str:
    """The version of this package, or "source" where it runs without being installed."""
    try:
        return metadata.version("freshrec")
    except metadata.PackageNotFoundError:
        return "source"


class StreamingSection(Section):
    """The dials of the job."""

    parallelism: int = Field(1, ge=1, le=128, description="TaskManagers that work; one slot each.")
    largest_parallelism: int = Field(
        2,
        ge=1,
        le=128,
        description="Never to be exceeded while the state lives: users are dealt to so many shards.",
    )
    freshness_ms: int = Field(
        30,
        ge=10,
        le=3000,
        description="Half of all events shall be in their user's row within so long, while the job keeps up with them.",
    )
    row_ttl_days: int = Field(90, ge=1, description="A row that no new event touches disappears after so long.")
    trending_hours: int = Field(7 * 24, ge=1, description="Popularity is counted over so many hours of event time.")
    providers: list[str] = Field(
        ["CUDAExecutionProvider", "CPUExecutionProvider"],
        min_length=1,
        description="ONNX Runtime providers, the first that works.",
    )
    least_overlap: float = Field(
        0.1,
        ge=0,
        le=1,
        description="A new model whose lists have less of their first ten places in common with the served one's goes.",
    )
    scorer_threads: int = Field(0, ge=0, description="Threads of one CPU scorer; 0: the cores left by Flink's tasks.")
    start_empty: bool = Field(
        False, description="Begin without a checkpoint although there are rows: everything is counted again from Kafka."
    )
    accept_gap: bool = Field(
        False,
        description="Go on although Kafka has lost events that were not read yet; without it the start is refused.",
    )

    @model_validator(mode="after")
    def _within_the_shards(self) -> "StreamingSection":
        if self.parallelism > self.largest_parallelism:
            raise ValueError(
                f"parallelism {self.parallelism} is above largest_parallelism {self.largest_parallelism}; "
                "lower the one, or raise the other before the first start"
            )
        return self

    @property
    def window_ms(self) -> int:
        """Events of a shard wait so long for each other, at most; each waits half of that on average.

        A TaskManager with many shards makes many micro-batches: they must leave it half of its time, or they queue.
        """
        shards_of_one = -(-self.largest_parallelism // self.parallelism)
        return max(5, self.freshness_ms * 2 // 3, 2 * MICRO_BATCH_MS * shards_of_one)

    @property
    def fetch_wait_ms(self) -> int:
        """Kafka gathers events for so long before it answers, at most.

        Half of it is added to what an event waits anyway. An answer for every few events costs both sides more than
        all else that is done with them between Kafka and the micro-batch.
        """
        return min(100, self.freshness_ms // 5)

    @property
    def behind_ms(self) -> int:
        """A TaskManager whose events have waited in Kafka for so long makes no rows until it has caught up."""
        return max(1000, 5 * self.freshness_ms)

    @property
    def buffer_timeout_ms(self) -> int:
        """A half full buffer of records waits so long on its way to a micro-batch. Each round of looking costs CPU."""
        return max(1, min(100, self.freshness_ms // 15))


class Settings(CommonSettings):
    """The tree as the job sees it; the trainer's section is the trainer's to check."""

    streaming: StreamingSection = StreamingSection()
    trainer: dict[str, Any] = Field(default_factory=dict)

    @property
    def event_topics(self) -> list[str]:
        """Topics that change a user's state."""
        return [self.topic(CLICKS), self.topic(ERASURES)]

    @property
    def control_topics(self) -> list[str]:
        """Topics that change what all users are served from."""
        return [self.topic(MODEL_RELEASES), self.topic(ITEMS), self.topic(ROLL_BACKS)]

    @property
    def roll_back_topic(self) -> str:
        """Where the job says which releases it took out of service by itself."""
        return self.topic(ROLL_BACKS)

    @property
    def dead_letter_topic(self) -> str:
        """Where records go that cannot be used."""
        return self.topic(DEAD_LETTERS)

    @property
    def control_group(self) -> str:
        """The Kafka group that reads the control topics; events are read under the job's name."""
        return f"{self.job_name}-control"

    def describe(self) -> list[str]:
        """The dials and what follows from them, one a line, for the start of the log."""
        s = self.streaming
        return [
            f"config: kafka {self.kafka.bootstrap}, cassandra {','.join(self.cassandra.hosts)}:{self.cassandra.port}",
            f"config: events {', '.join(self.event_topics)}; control {', '.join(self.control_topics)}",
            f"config: keyspace {self.keyspace}, rows live {s.row_ttl_days} days",
            f"config: parallelism {s.parallelism}, hence {s.parallelism} TaskManagers; never above "
            f"{s.largest_parallelism}, hence {s.largest_parallelism} shards",
            f"config: freshness {s.freshness_ms} ms, hence Kafka answers within {s.fetch_wait_ms} ms, windows of "
            f"{s.window_ms} ms and buffers sent after {s.buffer_timeout_ms} ms; {s.behind_ms} ms behind, rows "
            "wait until what is read is newer",
            "config: "
            + (
                f"only releases signed by one of {len(read_trust(self.release_keys).keys)} keys in {self.release_keys}"
                if self.release_keys
                else "releases are not verified, as release_keys is not set: who may write to "
                f"{self.control_topics[0]} decides what is served"
            ),
        ]
