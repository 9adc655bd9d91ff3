"""The job as it is, with one addition: its write operator also notes each event's acknowledgement (see acks.py).

Flink runs this file as the job's entry; the noting costs a few microseconds a micro-batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyflink.datastream import RuntimeContext

from streaming import job
from streaming.write import WriteRows
from tests.bench.acks import AckLog


class ObservedRows(WriteRows):
    """Counts freshness as before, and into the log beside."""

    def open(self, runtime_context: RuntimeContext) -> None:
        """Called by Flink in the task's thread."""
        super().open(runtime_context)
        self._freshness: Any = _Both(self._freshness, AckLog())


class _Both:
    def __init__(self, *counts: Any) -> None:
        self._counts = counts

    def count(self, produced_ms: NDArray[np.int64]) -> None:
        for one in self._counts:
            one.count(produced_ms)


if __name__ == "__main__":
    # Workers must find the class under its module's name, not as part of this entry file.
    from tests.bench.observed import ObservedRows as Importable

    setattr(job, "WriteRows", Importable)  # noqa: B010 - the module does not export the name
    job.main()
