"""Processes: found again by anyone, never mistaken for a stranger, stopped with their children."""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.process import Process, birth
from schemas.errors import UnreachableError

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = Process("sleeper", tmp_path)
    yield process
    process.stop(grace_s=0)


def test_it_is_found_again_by_another_reader_of_the_state_folder(process: Process, tmp_path: Path) -> None:
    pid = process.start(SLEEP)
    assert Process("sleeper", tmp_path).pid == pid
    assert process.vitals().memory is not None


def test_starting_it_twice_starts_it_once(process: Process) -> None:
    assert process.start(SLEEP) == process.start(SLEEP)
    assert process.vitals().starts == 1


def test_a_start_after_a_crash_counts(process: Process) -> None:
    first = process.start(SLEEP)
    process.kill()
    assert process.pid is None
    assert process.start(SLEEP) != first
    assert process.vitals().starts == 2


def test_a_recycled_pid_is_neither_alive_nor_signalled(process: Process) -> None:
    stranger = os.getpid()
    process.pid_file.parent.mkdir(parents=True)
    process.pid_file.write_text(json.dumps({"pid": stranger, "birth": 1, "starts": 1}))
    assert process.pid is None
    process.stop()
    assert birth(stranger) is not None
    assert not process.pid_file.exists()


def test_a_damaged_pid_file_means_down(process: Process) -> None:
    process.pid_file.parent.mkdir(parents=True)
    process.pid_file.write_text('{"pid": 1')
    assert process.pid is None


def test_stop_ends_children_that_outlive_their_leader(process: Process, tmp_path: Path) -> None:
    mark = tmp_path / "child"
    process.start(
        [
            "/bin/sh",
            "-c",
            f"{SLEEP[0]} -c 'import time; time.sleep(600)' & echo $! > {mark}; exec sleep 600",
        ]
    )
    while not mark.exists() or not mark.read_text().strip():
        time.sleep(0.02)
    child = int(mark.read_text())
    assert birth(child) is not None
    process.stop()
    deadline = time.monotonic() + 5
    while birth(child) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert birth(child) is None


def test_one_that_ignores_term_is_killed_after_the_grace(process: Process) -> None:
    mark = process.log_file
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);print('up', flush=True); time.sleep(600)"
    )
    process.start([sys.executable, "-c", stubborn])
    while "up" not in mark.read_text():
        time.sleep(0.02)
    process.stop(grace_s=0.2)
    assert process.pid is None


def test_a_program_that_is_missing_is_one_line_with_a_remedy(process: Process) -> None:
    with pytest.raises(UnreachableError, match=r"sleeper cannot be started.*see that /no/such can be run"):
        process.start(["/no/such"])


def test_the_output_of_the_life_before_stays_readable_and_the_error_in_it_is_found(
    process: Process,
) -> None:
    process.start([sys.executable, "-c", "print('INFO fine'); print('ERROR no disk'); print('bye')"])
    while process.pid is not None:
        time.sleep(0.02)
    assert process.last_words() == "ERROR no disk"
    process.start(SLEEP)
    assert "no disk" in process.log_file.with_suffix(".log.1").read_text()
