"""Cassandra dies, stops, is slow, silent, or refuses: rows wait for it; none is lost, mixed, or goes back."""

import time
from collections.abc import Callable, Iterator

import pytest

from deploy.local.stack import Stack
from deploy.local.tables import create_tables
from tests.harness import RunningJob
from tests.proxy import OVERLOADED, UNAUTHORIZED, Proxy
from tests.releases import make_release
from tests.traffic import FIRST, make_clicks, told
from tests.trial import Trial, note

# So many come during a fault and never again: a row of theirs that is not asked for again stays lost, where a steady
# user's would be written anew with the next click.
PASSERS_BY = 60
# An answer of a node nearby takes some 2 ms.
SLOW_S = 0.2


@pytest.fixture(scope="module")
def proxy(stack: Stack) -> Iterator[Proxy]:
    """The network before Cassandra, for the job alone; readers go to it directly."""
    proxy = Proxy(stack.ports.cql)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def job(proxy: Proxy, start_job: Callable[..., RunningJob], tmp_path_factory: pytest.TempPathFactory) -> RunningJob:
    """A job that reaches Cassandra through the proxy."""
    job = start_job(FRESHREC_CASSANDRA__PORT=str(proxy.port))
    job.serve(make_release(tmp_path_factory.mktemp("releases") / "first", *FIRST))
    return job


@pytest.mark.long
def test_cassandra_killed_amid_batches_loses_nothing(job: RunningJob) -> None:
    with Trial(job, "Cassandra killed (kill -9) amid batches"):
        job.stack.kill("cassandra")
        job.stack.wait("cassandra")


@pytest.mark.long
def test_lost_answers_are_asked_for_again(job: RunningJob, proxy: Proxy) -> None:
    passing = make_clicks("lost", PASSERS_BY, PASSERS_BY)
    with Trial(job, "Cassandra's answers lost for 8 s, then the connections"):
        proxy.silent = True
        job.click(passing)
        time.sleep(8)
        proxy.silent = False
        proxy.cut()
    assert proxy.lost
    job.agree(told(passing), FIRST)


@pytest.mark.long
def test_answers_that_take_100_times_as_long_make_rows_late_and_nothing_else(job: RunningJob, proxy: Proxy) -> None:
    with Trial(job, "Cassandra answers 100 times slower for 20 s"):
        proxy.delay_s = SLOW_S
        time.sleep(20)
        proxy.delay_s = 0.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("why", "answer"), [("overloaded", OVERLOADED), ("no permission", UNAUTHORIZED)], ids=["overloaded", "unauthorized"]
)
def test_a_cassandra_that_refuses_is_asked_again_until_it_takes_the_rows(
    job: RunningJob, proxy: Proxy, why: str, answer: tuple[int, bytes]
) -> None:
    before = proxy.refused
    passing = make_clicks(why.replace(" ", "-"), PASSERS_BY, PASSERS_BY)
    with Trial(job, f"Cassandra refuses every write for 10 s ({why})"):
        proxy.refusing = answer
        job.click(passing)
        time.sleep(10)
        proxy.refusing = None
    assert proxy.refused > before
    job.agree(told(passing), FIRST)


@pytest.mark.long
def test_cassandra_stopped_for_longer_than_the_job_waits_loses_nothing(job: RunningJob) -> None:
    with Trial(job, "Cassandra stopped for two minutes, the job restarts meanwhile"):
        job.stack.restart("cassandra", down_s=120)


@pytest.mark.long
def test_a_dropped_table_is_named_and_written_again_when_it_is_back(job: RunningJob) -> None:
    clicks = make_clicks("dropped", 300, users=20)
    job.session.execute(f"DROP TABLE {job.settings.keyspace}.recommendations", timeout=30)
    job.click(clicks)

    def named() -> bool:
        failure = job.stack.rest.failure(job.stack.rest.jobs()[-1].id) or ""
        return f"{job.settings.keyspace}.recommendations does not exist" in failure

    job.eventually("the failure names the table", named, patience_s=120)
    create_tables(job.settings)
    began = time.monotonic()
    job.eventually("the table is there again", lambda: job.row("nobody") is None)
    job.agree(told(clicks), FIRST)
    note("table dropped: the failure names it; made again", time.monotonic() - began)
