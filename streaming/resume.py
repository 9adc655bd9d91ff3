"""resume: what the job goes on from, settled before anything of it runs.

    1. the checkpoint it was given is opened; where that is damaged, the newest whole one beside it; its users must be
       dealt to as many shards as now, else nobody's state would be found again
    2. where that left off is compared with what Kafka still holds: events that are gone end the start, each named;
       partitions that it had not read yet begin with their first record
    3. without a checkpoint all of Kafka is read; a keyspace that already holds rows ends the start
Both ends say what to set for those who want it all the same.
"""

import time
from collections.abc import Mapping
from typing import Any

from pyflink.datastream import StreamExecutionEnvironment

from schemas.errors import ConfigError, ContractError
from streaming.checkpoint import Checkpoint, Damaged, open_checkpoint, others, owned
from streaming.config import Settings
from streaming.offsets import begin, gaps, require_no_gap, spans
from streaming.table import connect

# Flink's names of the checkpoint to start from, and of what makes JobManagers find one by themselves.
RESTORE_PATH, HIGH_AVAILABILITY = "execution.state-recovery.path", "high-availability.type"
CLAIM_MODE = "execution.state-recovery.claim-mode"
# Clocks of two machines may differ by so much and nobody needs to know.
PUT_BACK_S = 1.0


def cluster_configuration() -> dict[str, str]:
    """Flink's configuration of the process that started this one."""
    environment = StreamExecutionEnvironment.get_execution_environment()
    configuration: Any = environment._j_stream_execution_environment.getConfiguration()
    return dict(configuration.toMap())


def settle(settings: Settings, cluster: Mapping[str, str]) -> str | None:
    """The checkpoint to start from, None for none; said on stdout. cluster: Flink's configuration.

    Raises ContractError when the start would lose events or take rows back, ConfigError when it would lose the users'
    states, UnreachableError without a server.
    """
    path = cluster.get(RESTORE_PATH)
    if path is not None:
        checkpoint = _newest_whole(path, [*settings.event_topics, *settings.control_topics])
        _require_shards(settings.streaming.largest_parallelism, checkpoint)
        behind = _compare(settings, checkpoint)
        begin(settings, checkpoint.positions)
        age_s = time.time() - checkpoint.completed_ms / 1000
        if age_s < -PUT_BACK_S:
            _say(f"a clock {-age_s:.0f} s ahead of this one made it: what waited in its windows waits for so long")
        _say(f"going on from {checkpoint.path}, {age_s:.0f} s old: {behind} events since then are read (again)")
        return checkpoint.path
    if cluster.get(HIGH_AVAILABILITY, "NONE").upper() != "NONE":
        return None  # a JobManager that takes over finds its checkpoint after this
    if not settings.streaming.start_empty:
        _require_no_rows(settings)
    _say("beginning without a checkpoint: all of Kafka is read")
    begin(settings, {})
    return None


def recovery(checkpoint: str) -> dict[str, str]:
    """Flink's configuration of a start from a checkpoint.

    A checkpoint is the job's from then on: the next ones add to it, and it goes when it is superseded. A savepoint
    stays its owner's, and the first checkpoint after it holds everything. Only the job can say so: Flink's start script
    knows --fromSavepoint alone, and with it overrides what the cluster's file says.
    """
    return {RESTORE_PATH: checkpoint, CLAIM_MODE: "CLAIM" if owned(checkpoint) else "NO_CLAIM"}


def _newest_whole(path: str, topics: list[str]) -> Checkpoint:
    """The checkpoint, or the first whole one before it. Raises ContractError."""
    damage = ""
    for candidate in [path, *(others(path) if owned(path) else [])]:
        try:
            return open_checkpoint(candidate, topics)
        except Damaged as error:
            damage = damage or str(error)
            _say(f"{candidate} is damaged: {error}")
    raise ContractError(
        f"no whole checkpoint is left: {path} is damaged ({damage})",
        "bring its files back, or start without it and with streaming.start_empty=true",
    )


def _require_shards(shards: int, checkpoint: Checkpoint) -> None:
    """Raises ConfigError when the users in a checkpoint are dealt to another number of shards."""
    if checkpoint.shards not in (None, shards):
        raise ConfigError(
            f"streaming.largest_parallelism is {shards}, but the users in {checkpoint.path} are dealt to "
            f"{checkpoint.shards} shards",
            f"set it to {checkpoint.shards}; for another one, start without the checkpoint and with "
            "streaming.start_empty=true",
        )


def _compare(settings: Settings, checkpoint: Checkpoint) -> int:
    """How many events lie between a checkpoint and the end of Kafka. Raises ContractError for a gap."""
    held = spans(settings, settings.event_topics + settings.control_topics)
    found = gaps(checkpoint.positions, held)
    if settings.streaming.accept_gap:
        for gap in found:
            _say(f"accepted: {gap}")
    else:
        require_no_gap(found)
    return sum(
        high - min(high, max(low, checkpoint.positions.get(place, low)))
        for place, (low, high) in held.items()
        if place[0] in settings.event_topics
    )


def _require_no_rows(settings: Settings) -> None:
    """Raises ContractError when the keyspace holds rows, UnreachableError."""
    session = connect(settings)
    try:
        tables: Any = session.cluster.metadata.keyspaces
        if settings.keyspace not in tables or "recommendations" not in tables[settings.keyspace].tables:
            return  # the job says so when it opens its tables
        row = session.execute(f"SELECT user_id FROM {settings.keyspace}.recommendations LIMIT 1").one()
    finally:
        session.cluster.shutdown()
    if row is not None:
        raise ContractError(
            f"keyspace {settings.keyspace} holds rows, and there is no checkpoint to go on from",
            "name one (Flink's --fromSavepoint), or count everything again from Kafka with streaming.start_empty=true",
        )


def _say(line: str) -> None:
    print(f"resume: {line}", flush=True)
