"""Real Kafka, Cassandra and Flink for the tests of the flow, on free ports, stopped at the end.

And how tests look for counterexamples: the same ones everywhere, or, with `--hypothesis-profile=long`, ever new ones.
"""

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import settings

from deploy.local.stack import Stack
from schemas.avro import published
from tests.harness import RunningJob, servers

# No deadline: nothing here is a measurement. No folder is left behind.
settings.register_profile("unit", deadline=None, max_examples=30, derandomize=True, database=None)
settings.register_profile("long", deadline=None, max_examples=1000, database=None)
settings.load_profile("unit")


@pytest.fixture
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No settings but those of the test."""
    for name in [name for name in os.environ if name.startswith("FRESHREC_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka and Cassandra; KEEP_TEST_STATE keeps the folder for a look afterwards, FRESHREC_TEST_SECURE locks them."""
    with tempfile.TemporaryDirectory(prefix="freshrec-test-") as folder:
        state = Path(os.environ.get("KEEP_TEST_STATE", folder))
        with servers(state, "FRESHREC_TEST_SECURE" in os.environ) as stack:
            yield stack


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


@pytest.fixture
def schema_registry() -> Iterator[tuple[str, list[str]]]:
    """A registry with schema 7, a click, and 9, an item; its address and the paths it was asked for."""
    asked: list[str] = []
    known = {"/schemas/ids/7": "click_event", "/schemas/ids/9": "item"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            record = known.get(self.path)
            self.send_response(200 if record else 404)
            self.end_headers()
            if record:
                self.wfile.write(json.dumps({"schema": json.dumps(published(record).latest)}).encode())

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", asked
    http.shutdown()
    thread.join()
    http.server_close()
