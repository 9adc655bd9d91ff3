"""Brings back what dies: `python -m deploy.local.supervisor STATE`, started by `up`.

Once a second it looks at what should run. A dead TaskManager, Kafka or Cassandra is started again;
a dead JobManager too, with the job from its newest completed checkpoint. Old checkpoints go. Its log,
`STATE/log/supervisor.log`, tells what it did.
"""

import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from deploy.local.flink import newest_checkpoint
from deploy.local.prune import prune_checkpoints
from deploy.local.server import Server
from deploy.local.stack import Stack
from schemas.errors import FreshrecError

LOOK_S = 1.0
# A process that dies at once is tried again after 2, 4, 8, … seconds: often enough to heal, too
# seldom to harm.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0
# Checkpoints of former lives need not go at once.
PRUNE_S = 60.0
# After this long alive, a death is a new accident and is answered at once.
HEALTHY_S = 60.0


class Supervisor:
    """Watches one stack until it is told to stop."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._stopping = False
        self._started: dict[str, float] = {}
        self._pause: dict[str, float] = {}
        self._pruned = time.monotonic()

    def run(self) -> None:
        """Look once a second, until TERM or INT."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        say(f"watching {self._stack.state}")
        while not self._stopping:
            with self._stack.locked():
                for server in self._stack.servers():
                    if server.process.pid is None and not self._stopping:
                        self._revive(server)
            self._prune()
            time.sleep(LOOK_S)
        say("stopped")

    def _revive(self, server: Server) -> None:
        now = time.monotonic()
        alive_s = now - self._started.get(server.name, -HEALTHY_S)
        if alive_s >= HEALTHY_S:
            self._pause[server.name] = 0.0
        if alive_s < self._pause[server.name]:
            return
        self._pause[server.name] = min(max(FIRST_PAUSE_S, 2 * self._pause[server.name]), LONGEST_PAUSE_S)
        self._started[server.name] = now
        say(f"{server.name} is dead; its last output is now {server.process.log_file.name}.1")
        checkpoint = newest_checkpoint(self._stack.state / "flink" / "checkpoints")
        try:
            server.start()
        except FreshrecError as error:
            say(f"{server.name} cannot be started: {error}")
            return
        origin = (
            f" from {checkpoint.parent.name}/{checkpoint.name}" if server.name == "jobmanager" and checkpoint else ""
        )
        say(f"{server.name} started again{origin}, pid {server.process.pid}")

    def _prune(self) -> None:
        if time.monotonic() - self._pruned >= PRUNE_S:
            self._pruned = time.monotonic()
            if count := prune_checkpoints(self._stack.state / "flink" / "checkpoints"):
                say(f"removed {count} old checkpoints")

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping = True


def say(line: str) -> None:
    """One line of the log."""
    print(datetime.now(UTC).isoformat(timespec="milliseconds"), line, flush=True)


def main() -> None:
    """Supervise the stack of the state folder given."""
    Supervisor(Stack.open(Path(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
