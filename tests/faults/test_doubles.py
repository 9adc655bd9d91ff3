"""Two where there should be one: a worker that was thought dead wakes up, a job is started twice."""

import os
import signal
import time
from pathlib import Path

import pytest

from deploy.local.config import load_local_settings
from deploy.local.stack import Stack
from schemas.errors import UnreachableError
from tests.harness import JOB, RunningJob
from tests.trial import Trial

# Flink takes a TaskManager for dead after 8 s without a heartbeat.
PAST_HEARTBEAT_S = 20.0


@pytest.mark.long
def test_a_second_job_says_so_and_stops_and_rows_stay_right(job: RunningJob, tmp_path: Path) -> None:
    second = Stack.create(load_local_settings(state=tmp_path), free_ports=True)
    servers = {**job.stack.environment, "FRESHREC_NAMESPACE": job.namespace}
    with Trial(job, "a second job started by mistake"):
        try:
            with pytest.raises(UnreachableError, match="another job already runs under this name"):
                second.start_flink(JOB, env=servers)
        finally:
            second.stop()


@pytest.mark.long
def test_a_taskmanager_that_was_thought_dead_wakes_up_and_its_late_writes_lose(job: RunningJob) -> None:
    job.halt()
    job.stack.resize(taskmanagers=1, spares=1)
    job.resume()
    try:
        with Trial(job, f"TaskManager stopped past its heartbeat (SIGSTOP for {PAST_HEARTBEAT_S:.0f} s), then woken"):
            workers = job.stack.rest.get("/taskmanagers")["taskmanagers"]
            busy = next(worker["id"] for worker in workers if worker["freeSlots"] == 0)
            pid = job.stack.server(busy).process.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(PAST_HEARTBEAT_S)
            finally:
                os.kill(pid, signal.SIGCONT)
    finally:
        job.halt()
        job.stack.resize(taskmanagers=1)
