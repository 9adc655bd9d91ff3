"""The job: what is connected to what, in the order of the flow. No logic here.

clicks, erasures ──▶ read ──▶ batch ──▶ features ──▶ score, write ──▶ Cassandra
                                          │  └─▶ trending ─▶┐ ▲ └─▶ roll-backs ──▶ Kafka
model-releases, items ──▶ read ──▶ batch ─┼──▶ control ─────┴─┘ (to every scorer)
  roll-backs                              └─▶ dead-letters ──▶ Kafka
"""

import sys

from pyflink.common import Configuration, Types
from pyflink.datastream import StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from schemas.errors import run_command
from schemas.settings import load_settings
from schemas.signing import read_trust
from streaming import batch, dead_letter, lease, read, resume
from streaming.config import Settings
from streaming.control import AVAILABILITY, Control
from streaming.features import POPULARITY, Features
from streaming.graph import AT_ONCE, batches, keyed, name_sink, named, shut_gateway, side_output
from streaming.score import ROLL_BACKS, SHARED, Score
from streaming.trending import CountTrending
from streaming.write import WriteRows, WriteTrending

# Control messages and trending lists may take their time: a longer window makes the first reading of a large catalogue
# cheap, and buffers that are seldom looked at cost nothing.
SLOW_MS = 100


def build(settings: Settings, checkpoint: str | None = None) -> StreamExecutionEnvironment:
    """The job's graph, ready to be executed, from a checkpoint or without one."""
    dials = settings.streaming
    environment = StreamExecutionEnvironment.get_execution_environment(_configuration(checkpoint))
    environment.set_parallelism(dials.parallelism)
    environment.set_max_parallelism(batch.MAX_PARALLELISM)
    environment.set_buffer_timeout(SLOW_MS)
    tables = StreamTableEnvironment.create(environment)
    kafka, lossy = settings.kafka, dials.accept_gap

    wait_ms = dials.fetch_wait_ms
    read.declare(tables, read.EVENTS, kafka, settings.event_topics, settings.job_name, wait_ms, lossy)
    read.declare(tables, read.CONTROL, kafka, settings.control_topics, settings.control_group, SLOW_MS, lossy)
    shards = batch.balanced_keys(dials.largest_parallelism)
    events = batches(tables, read.EVENTS, settings.event_topics, shards, dials.window_ms, dials.buffer_timeout_ms)
    messages = batches(tables, read.CONTROL, settings.control_topics, shards[:1], SLOW_MS, SLOW_MS)

    features = named(
        keyed(events).process(Features(settings), Types.PICKLED_BYTE_ARRAY()),
        "features",
    ).set_buffer_timeout(AT_ONCE)
    control = named(
        keyed(messages).process(
            Control(settings.control_topics, settings.kafka.schema_registry_url, read_trust(settings.release_keys)),
            Types.PICKLED_BYTE_ARRAY(),
        ),
        "control",
        parallelism=1,
    )
    popularity = keyed(side_output(features, POPULARITY, "popularity"))
    availability = keyed(side_output(control, AVAILABILITY, "availability"))
    trending = named(
        popularity.connect(availability).process(CountTrending(dials.trending_hours), Types.PICKLED_BYTE_ARRAY()),
        "trending",
        parallelism=1,
    )
    named(trending.process(WriteTrending(settings), Types.PICKLED_BYTE_ARRAY()), "write_trending", parallelism=1)
    shared = control.union(trending).broadcast(SHARED)
    scored = named(
        features.connect(shared).process(Score(settings), Types.PICKLED_BYTE_ARRAY()), "score"
    ).set_buffer_timeout(AT_ONCE)
    # A task of its own: one micro-batch is scored while Cassandra takes the one before.
    named(scored.process(WriteRows(settings), Types.PICKLED_BYTE_ARRAY()), "write").start_new_chain()

    letters = [
        side_output(stream, dead_letter.DEAD_LETTERS, f"{name}_dead_letters")
        for name, stream in (("features", features), ("control", control), ("score", scored))
    ]
    for name, topic, stream in (
        ("dead_letters", settings.dead_letter_topic, letters[0].union(*letters[1:])),
        ("roll_backs", settings.roll_back_topic, side_output(scored, ROLL_BACKS, "score_roll_backs")),
    ):
        dead_letter.declare_sink(tables, name, kafka, topic)
        statements = tables.create_statement_set()
        statements.add_insert(name, tables.from_data_stream(stream))
        statements.attach_as_datastream()
        name_sink(environment, name)
    return environment


def main() -> None:
    """Run the job on the cluster that started this process. Raises FreshrecError before Flink is asked for anything."""
    settings = load_settings(Settings)
    for line in settings.describe():
        print(line, flush=True)
    settings.cassandra.require_everywhere()
    cluster = resume.cluster_configuration()
    with lease.sole(settings, cluster):
        checkpoint = resume.settle(settings, cluster)
        running = build(settings, checkpoint).execute_async(settings.job_name)
        shut_gateway()
        # The process that holds the lease stays for as long as the job runs.
        running.get_job_execution_result().result()


def _configuration(checkpoint: str | None) -> Configuration:
    """What the job itself needs of Flink; addresses, memory and checkpoints are the cluster's."""
    configuration = Configuration()
    configuration.set_string("python.execution-mode", "thread")
    configuration.set_string("python.executable", sys.executable)
    configuration.set_string("python.client.executable", sys.executable)
    for name, value in resume.recovery(checkpoint).items() if checkpoint is not None else ():
        configuration.set_string(name, value)
    return configuration


if __name__ == "__main__":
    run_command(main)
