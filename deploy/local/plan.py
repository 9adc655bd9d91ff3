"""What should run in a state folder: `STATE/stack.json`, read anew by every process that looks."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.local.flink import Job


@dataclass(frozen=True)
class Plan:
    """The dials of a stack, the names of the processes that should run, and the job among them."""

    port_base: int
    namespace: str
    jars: str
    taskmanagers: int
    spares: int
    click_partitions: int
    metrics: bool
    # Plans of earlier versions say nothing of these three.
    checkpoint_s: int = 10
    durable: bool = False
    secure: bool = False
    wanted: list[str] = field(default_factory=list)
    job: Job | None = None


class PlanFile:
    """The plan of one state folder."""

    def __init__(self, state: Path) -> None:
        self._file = state / "stack.json"
        self._lock = state / ".lock"

    def exists(self) -> bool:
        return self._file.exists()

    def read(self) -> Plan:
        raw = json.loads(self._file.read_text())
        return Plan(**{**raw, "job": Job(**raw["job"]) if raw["job"] else None})

    def write(self, plan: Plan) -> None:
        """Replace the plan in one step: a reader sees the old one or the new one."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(asdict(plan), indent=2))
        part.replace(self._file)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time starts, stops or plans: never one against the other."""
        with self._lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
