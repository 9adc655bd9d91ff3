"""One server process: started detached, found again by its pid file, stopped by its own pid.

A pid alone is no identity: after a crash the system may give the same number to a stranger. The pid
file therefore keeps the birth of the process as well, and a process with another birth is never
signalled.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from schemas.errors import UnreachableError

POLL_S = 0.05  # how often a stop looks whether the process has gone


@dataclass(frozen=True)
class Vitals:
    """A process as people see it; pid, since (s since 1970) and memory (bytes) None when down."""

    name: str
    pid: int | None
    since: float | None
    memory: int | None
    starts: int


class Process:
    """A named process of a state folder: pid file `run/NAME.json`, output `log/NAME.log`."""

    def __init__(self, name: str, state: Path) -> None:
        self.name = name
        self.pid_file = state / "run" / f"{name}.json"
        self.log_file = state / "log" / f"{name}.log"

    def start(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Start it in a session of its own, so that it survives this terminal; returns its pid.

        Raises UnreachableError when the program cannot be run.
        """
        if (pid := self.pid) is not None:
            return pid
        starts = self._record().get("starts", 0)
        self.kill()  # children that a dead leader left behind
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        if self.log_file.exists():  # the previous life stays readable
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        try:
            with self.log_file.open("wb") as log:
                child = subprocess.Popen(
                    list(argv),
                    env=None if env is None else dict(env),
                    cwd=self.pid_file.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise UnreachableError(
                f"{self.name} cannot be started: {error}", f"see that {argv[0]} can be run"
            ) from error
        child.returncode = 0  # it is meant to outlive this object, which would otherwise warn
        record = {"pid": child.pid, "birth": birth(child.pid), "starts": starts + 1}
        part = self.pid_file.with_suffix(".part")
        part.write_text(json.dumps(record))
        part.replace(self.pid_file)
        return child.pid

    @property
    def pid(self) -> int | None:
        """The pid while the process that was started is alive, else None."""
        record = self._record()
        pid = record.get("pid")
        if pid is None or record["birth"] is None or birth(pid) != record["birth"]:
            return None
        return int(pid)

    def vitals(self) -> Vitals:
        """A snapshot for people; never raises."""
        pid, starts = self.pid, self._record().get("starts", 0)
        since = memory = None
        if pid is not None:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                since, memory = process.create_time(), process.memory_info().rss
        return Vitals(self.name, pid, since, memory, starts)

    def stop(self, grace_s: float = 20.0) -> None:
        """TERM, `grace_s` seconds of patience, KILL for it and its children; no pid file stays."""
        if (pid := self.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while self.pid is not None and time.monotonic() < deadline:
                time.sleep(POLL_S)
        self.kill()
        self.pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """KILL it and what it started, at once: what a crash looks like. The pid file stays."""
        pid = self._record().get("pid")
        if pid is None or (self.pid is None and birth(pid) is not None):
            return  # nothing was ever started, or its number now belongs to a stranger
        # A number is not given away while it still names a group: this reaches our own orphans or
        # nobody.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        while self.pid is not None:
            time.sleep(POLL_S)

    def last_words(self) -> str:
        """The line of its log that best tells why it died; empty when there is none."""
        if not self.log_file.exists():
            return ""
        lines = self.log_file.read_text(errors="replace").splitlines()[-200:]
        # The project's own errors say cause and remedy in a line of their own.
        telling = [line for line in lines if line.startswith("error: ")] or [
            line for line in lines if "ERROR" in line or "Exception" in line or "FATAL" in line
        ]
        return (telling or lines or [""])[-1].strip()[:300]

    def _record(self) -> dict[str, int]:
        try:
            record: dict[str, int] = json.loads(self.pid_file.read_text())
        except (OSError, ValueError):
            return {}
        return record


def birth(pid: int) -> int | None:
    """When a process was born, in a unit only good for comparison; None for the dead and zombies.

    Linux counts from the boot, in ticks: other than a time of day, that never moves when the clock
    is set.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # our own dead child would stay a zombie
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except OSError:
        if Path("/proc/self").exists():
            return None
    try:
        return int(psutil.Process(pid).create_time() * 1000)
    except psutil.Error:
        return None
