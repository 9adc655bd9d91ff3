"""The table that `status` shows."""

import time

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.local.flink_rest import CheckpointView
from deploy.local.server import Server
from deploy.local.stack import Stack
from schemas.errors import UnreachableError

MIB = 1024**2


def render_status(stack: Stack) -> RenderableType:
    """Every process with pid, ports, age, memory and restarts; the job; where to look."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("process", "state", "pid", "port", "since", "memory", "restarts"):
        table.add_column(column, justify="right" if column in ("pid", "memory", "restarts") else "left")
    for server in stack.servers():
        _add(table, server)
    vitals = stack.supervisor.vitals()
    up = Text("up", "green") if vitals.pid else Text("down", "red")
    table.add_row("supervisor", up, str(vitals.pid or ""), "", _ago(vitals.since), _mib(vitals.memory), "")
    settings = stack.settings
    where = {
        "Kafka": settings.kafka.bootstrap,
        "Cassandra": f"{settings.cassandra.hosts[0]}:{settings.cassandra.port}, keyspace {settings.keyspace}",
        "logs": str(stack.state / "log"),
    }
    if stack.plan.job:
        where = {"job": _job(stack), "Flink's UI": stack.flink_url, **where}
    lines = [Text(f"{what:11s} {place}", overflow="fold") for what, place in where.items()]
    return Group(table, Text(""), *lines)


def _add(table: Table, server: Server) -> None:
    vitals = server.process.vitals()
    trouble = server.trouble() if vitals.pid else "down"
    state = Text("up", "green") if trouble is None else Text(trouble, "red")
    port = next(iter(server.ports().values()), None)
    table.add_row(
        server.name,
        state,
        str(vitals.pid or ""),
        str(port or ""),
        _ago(vitals.since),
        _mib(vitals.memory),
        str(max(vitals.starts - 1, 0)),
    )


def _job(stack: Stack) -> str:
    try:
        jobs = stack.rest.jobs()
        if not jobs:
            return "none yet"
        job = jobs[-1]
        restarts = stack.rest.restarts(job.id)
        failure = stack.rest.failure(job.id)
        tasks = f"{job.tasks_running} of {job.tasks} tasks run, {restarts} restarts"
        tasks += f" (it failed last with {failure})" if failure else ""
        return f"{job.name}: {job.state}, {tasks}, {_checkpoint(stack.rest.checkpoint(job.id))}"
    except UnreachableError as error:
        return error.cause


def _checkpoint(checkpoint: CheckpointView | None) -> str:
    if checkpoint is None:
        return "no checkpoint yet"
    age_s = time.time() - checkpoint.completed_at / 1000
    size = f"{checkpoint.size / MIB:.1f} MiB in {checkpoint.duration_ms} ms"
    return f"checkpoint {checkpoint.number} {age_s:.0f} s ago ({size})"


def _ago(since: float | None) -> str:
    if since is None:
        return ""
    seconds = int(time.time() - since)
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"


def _mib(size: int | None) -> str:
    return f"{size / MIB:.0f} MiB" if size is not None else ""
