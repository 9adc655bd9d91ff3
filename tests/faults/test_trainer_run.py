"""`trainer run` outlives a Kafka that is not there, one line a period, and ends between two steps when told to."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from deploy.local.config import REPOSITORY
from deploy.local.ports import HOST, free_base

PATIENCE_S = 90.0


def wait_for(lines: list[str], word: str, times: int) -> None:
    """Until so many lines hold a word."""
    deadline = time.monotonic() + PATIENCE_S
    while sum(word in line for line in lines) < times:
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


def test_an_unreachable_kafka_is_one_line_a_period_and_sigterm_ends_the_loop(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "FRESHREC_TRAINER__DATA": str(tmp_path / "data"),
        "FRESHREC_TRAINER__RELEASES": str(tmp_path / "releases"),
        "FRESHREC_KAFKA__BOOTSTRAP": f"{HOST}:{free_base()}",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-m", "trainer"]
    running = subprocess.Popen(
        [*command, "run", "--every", "1s"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    assert running.stdout is not None
    with running.stdout as output:
        reader = threading.Thread(target=lambda: lines.extend(output))
        reader.start()
        try:
            wait_for(lines, "this cycle published nothing: Kafka at", 2)
            beside = subprocess.run([*command, "cycle"], env=environment, cwd=tmp_path, capture_output=True, text=True)
            assert beside.returncode == 2 and "another trainer works in" in beside.stderr
            running.send_signal(signal.SIGTERM)
            assert running.wait(PATIENCE_S) == 0
        finally:
            running.kill()
            reader.join()
    assert lines[-1] == "trainer: stopped, as asked\n"
    assert not any("Traceback" in line for line in lines)
    # Kafka's answer is waited for longer than the period: the times overrun meanwhile become one.
    assert any("overran" in line for line in lines)
