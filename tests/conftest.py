"""Real Kafka, Cassandra and Flink for the tests of the flow, on free ports, stopped at the end."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.config import load_local_settings
from deploy.local.stack import Stack
from tests.harness import RunningJob


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka and Cassandra; KEEP_TEST_STATE keeps the folder for a look afterwards."""
    with tempfile.TemporaryDirectory(prefix="freshrec-test-") as folder:
        state = Path(os.environ.get("KEEP_TEST_STATE", folder))
        stack = Stack.create(load_local_settings(state=state), free_ports=True)
        try:
            stack.start_servers(print)
            yield stack
        finally:
            stack.stop(print)


@pytest.fixture(scope="module")
def start_job(stack: Stack, request: pytest.FixtureRequest) -> Iterator[Callable[..., RunningJob]]:
    """Starts the job of a test module, under the module's own namespace."""
    jobs: list[RunningJob] = []

    def start(**env: str) -> RunningJob:
        # A cluster runs one job: what another test left running ends.
        stack.supervisor.stop()
        stack.stop_flink()
        job = RunningJob(stack, Path(request.node.name).stem, env)
        jobs.append(job)
        job.start()
        return job

    yield start
    for job in jobs:
        job.stop()
