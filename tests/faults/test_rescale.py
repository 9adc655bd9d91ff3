"""The job goes on with more TaskManagers, and with fewer."""

import pytest

from tests.harness import RunningJob
from tests.trial import Trial


@pytest.mark.long
def test_rescaling_from_one_to_two_and_back_loses_nothing(job: RunningJob) -> None:
    try:
        for width in (2, 1):
            with Trial(job, f"rescaled to {width} TaskManager{'s' if width > 1 else ''}"):
                job.halt()
                job.stack.resize(taskmanagers=width)
                job.resume()
    finally:
        job.halt()
        job.stack.resize(taskmanagers=1)
