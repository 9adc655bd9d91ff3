"""Real Kafka, Cassandra and Flink for the tests of the flow, on free ports, stopped at the end.

And how tests look for counterexamples: the same ones everywhere, or, with `--hypothesis-profile=long`, ever new ones.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from deploy.local.config import load_local_settings
from deploy.local.stack import Stack
from tests.harness import RunningJob

# No deadline: nothing here is a measurement. No folder is left behind.
settings.register_profile("unit", deadline=None, max_examples=30, derandomize=True, database=None)
settings.register_profile("long", deadline=None, max_examples=1000, database=None)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka and Cassandra; FRESHREC_TEST_STATE keeps the folder for a look afterwards."""
    with tempfile.TemporaryDirectory(prefix="freshrec-test-") as folder:
        state = Path(os.environ.get("FRESHREC_TEST_STATE", folder))
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
        job = RunningJob(stack, Path(request.node.name).stem, env)
        jobs.append(job)
        job.start()
        return job

    yield start
    for job in jobs:
        job.stop()
