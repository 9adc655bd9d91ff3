"""What a benchmark on servers needs: Kafka and Cassandra of its own, a release, names; gone in the end."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from deploy.local.config import load_local_settings
from deploy.local.stack import Stack
from tests.bench.report import Run
from tests.bench.world import make_release
from trainer.publish import Release


class Lab:
    """Servers on free ports in a folder of their own. taskmanagers: of the job's cluster, ready for its parallelism."""

    def __init__(self, run: Run, taskmanagers: int = 1) -> None:
        self._run = run
        self._made = 0
        self._folder = Path(tempfile.mkdtemp(prefix="freshrec-bench-"))
        local = load_local_settings(state=self._folder / "state", taskmanagers=taskmanagers)
        self.stack = Stack.create(local, free_ports=True)
        self.releases = self._folder / "releases"

    def __enter__(self) -> Self:
        # A terminated benchmark leaves by the same door as an interrupted one, and takes its servers along.
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            self.release = self.new_release()
            self._run.say("the release is written")
            self.stack.start_servers(self._run.say)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def new_release(self) -> Release:
        """Another release of the same size."""
        self._made += 1
        return make_release(self.releases, f"20260101-{self._made:06d}", seed=self._made)

    def namespace(self) -> str:
        """A name nobody had before."""
        self._made += 1
        return f"bench{self._made}"

    def _end(self) -> None:
        self.stack.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
