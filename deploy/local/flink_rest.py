"""What Flink's REST API says about the job and its TaskManagers."""

import json
import re
import ssl
import urllib.request
from dataclasses import dataclass
from typing import Any

from schemas.errors import UnreachableError

ANSWER_S = 5.0
# Of a failure, characters: Kafka describes an offset in some 200 of them before it says what is wrong with it.
LONGEST_REASON = 600
# What comes before the name of a Java class.
_PACKAGE = re.compile(r"^([a-z_]\w*\.)+")


@dataclass(frozen=True)
class JobView:
    """One job as Flink sees it; `state` in Flink's words, counts of parallel tasks."""

    id: str
    name: str
    state: str
    tasks: int
    tasks_running: int

    @property
    def running(self) -> bool:
        """RUNNING alone is said too early, while tasks still start."""
        return self.state == "RUNNING" and self.tasks > 0 and self.tasks_running == self.tasks


@dataclass(frozen=True)
class CheckpointView:
    """A completed checkpoint: number, when (ms since 1970), how long (ms), size (bytes)."""

    number: int
    completed_at: int
    duration_ms: int
    size: int


class FlinkRest:
    """A client of one JobManager. Every method raises UnreachableError when it does not answer."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        """context: whom to believe, and who we are, where the address is an https one."""
        self.url = url
        self._context = context

    def jobs(self) -> list[JobView]:
        """All jobs it knows, the newest last."""
        jobs = sorted(self.get("/jobs/overview")["jobs"], key=lambda job: job["start-time"])
        return [
            JobView(
                job["jid"],
                job["name"],
                job["state"],
                job["tasks"]["total"],
                job["tasks"]["running"],
            )
            for job in jobs
        ]

    def taskmanagers(self) -> list[str]:
        """The names of the TaskManagers that have registered."""
        return [manager["id"] for manager in self.get("/taskmanagers")["taskmanagers"]]

    def checkpoint(self, job: str) -> CheckpointView | None:
        """The newest completed checkpoint of this run of the job."""
        newest = self.get(f"/jobs/{job}/checkpoints")["latest"]["completed"]
        if newest is None:
            return None
        return CheckpointView(
            newest["id"],
            newest["latest_ack_timestamp"],
            newest["end_to_end_duration"],
            newest["state_size"],
        )

    def restarts(self, job: str) -> int:
        """How often the job has started again by itself since the JobManager started."""
        values = self.get(f"/jobs/{job}/metrics?get=numRestarts")
        return int(values[0]["value"]) if values else 0

    def restored(self, job: str) -> int:
        """How often this run of the job has gone on from a checkpoint; known at once, which a metric is not."""
        return int(self.get(f"/jobs/{job}/checkpoints")["counts"]["restored"])

    def failure(self, job: str) -> str | None:
        """The innermost cause of the newest failure and what came of it, which says where; None without a failure."""
        entries = self.get(f"/jobs/{job}/exceptions?maxExceptions=1")["exceptionHistory"]["entries"]
        if not entries:
            return None
        lines = str(entries[0]["stacktrace"]).splitlines()
        chain = lines[:1] + [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
        return ": ".join(_PACKAGE.sub("", line) for line in chain[-2:])[:LONGEST_REASON]

    def get(self, path: str) -> Any:
        """The parsed JSON of one path."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=ANSWER_S, context=self._context) as answer:  # noqa: S310 (http)
                return json.load(answer)
        except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors
            raise UnreachableError(f"Flink at {self.url} does not answer ({error})", "see that it runs") from error
