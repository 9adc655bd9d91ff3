"""When each event's row was acknowledged, written down by whoever wrote the row: the job and every peer alike.

A row in Cassandra does not say when its write was acknowledged, and a reader cannot look at thousands of rows every
millisecond without taking the cores it measures. So the writer notes, after each acknowledgement, when it was and when
the events that the rows know were produced: 16 bytes an event, appended to a file. What a reader sees is measured
beside it, on a sample (reader.py), and printed in the same table: the two must agree.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# The file's name, for processes that this suite starts.
VARIABLE = "BENCH_ACKS"
_PAIR = np.dtype([("produced_ms", "<i8"), ("acknowledged_us", "<i8")])


class AckLog:
    """Appends to the file that VARIABLE names; each call is one write, so several tasks may share the file."""

    def __init__(self) -> None:
        self._file = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def count(self, produced_ms: NDArray[np.int64]) -> None:
        """produced_ms: int64[N], Kafka's time of creation of the events; now is the acknowledgement."""
        pairs = np.empty(len(produced_ms), _PAIR)
        pairs["produced_ms"] = produced_ms
        pairs["acknowledged_us"] = time.time_ns() // 1000
        os.write(self._file, pairs.tobytes())


def read_acks(file: Path) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All so far: when the events were produced int64[N] ms, and acknowledged float64[N] ms."""
    if not file.exists():
        return np.zeros(0, np.int64), np.zeros(0)
    raw = file.read_bytes()
    pairs = np.frombuffer(raw[: len(raw) // _PAIR.itemsize * _PAIR.itemsize], _PAIR)
    return pairs["produced_ms"].copy(), pairs["acknowledged_us"] / 1000.0


def count_acks(file: Path) -> int:
    """How many so far."""
    return file.stat().st_size // _PAIR.itemsize if file.exists() else 0


def wait_acks(file: Path, upto: int, patience_s: float) -> bool:
    """Wait until there are so many; False when patience ends before."""
    deadline = time.monotonic() + patience_s
    while count_acks(file) < upto:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
