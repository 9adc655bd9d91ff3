"""The job goes on with more TaskManagers, and with fewer; what would lose the users' states is refused."""

from collections.abc import Callable

import pytest

from schemas.errors import UnreachableError
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import FIRST
from tests.trial import Trial

LARGEST = "FRESHREC_STREAMING__LARGEST_PARALLELISM"


@pytest.fixture(scope="module")
def job(start_job: Callable[..., RunningJob], tmp_path_factory: pytest.TempPathFactory) -> RunningJob:
    """A job that may grow to four TaskManagers."""
    job = start_job(**{LARGEST: "4"})
    job.serve(make_release(tmp_path_factory.mktemp("releases") / "first", *FIRST))
    return job


@pytest.mark.long
def test_rescaling_from_one_to_two_to_four_and_back_loses_nothing(job: RunningJob) -> None:
    before = 1
    try:
        for width in (2, 4, 1):
            with Trial(job, f"rescaled from {before} to {width} TaskManager{'s' if width > 1 else ''}"):
                job.halt()
                job.stack.resize(taskmanagers=width)
                job.resume()
            before = width
    finally:
        job.halt()
        job.stack.resize(taskmanagers=1)
        job.resume()


@pytest.mark.long
def test_a_start_with_another_number_of_shards_is_refused_and_says_which_was_meant(job: RunningJob) -> None:
    with Trial(job, "largest_parallelism changed: start refused, then started with the right one"):
        job.halt()
        with pytest.raises(UnreachableError, match=r"largest_parallelism is 2, but .* dealt to 4 shards; set it to 4"):
            job.resume(**{LARGEST: "2"})
        job.halt()
        job.resume()
