"""Before a model, and for users whom no model can help: the trending list, and `source` says so."""

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from schemas.click import Click
from tests.harness import RunningJob
from tests.releases import make_release
from tests.traffic import FIRST, make_clicks, told

HOURS = 48


def test_trending_until_the_first_model_and_for_strangers_after_it(
    start_job: Callable[..., RunningJob], tmp_path: Path
) -> None:
    job = start_job(FRESHREC_STREAMING__TRENDING_HOURS=str(HOURS))
    clicks = make_clicks("early", 2000, users=25)
    oracle = told(clicks)
    job.click(clicks)
    expected = oracle.trending(HOURS)

    def trends() -> bool:
        row = job.trending()
        return row is not None and row.item_ids == expected[: len(row.item_ids)] and len(row.item_ids) == 50

    job.eventually("the trending row counts every click of the last 48 hours", trends)
    trending = job.trending()
    assert trending is not None and trending.source == "trending" and trending.model_version == ""
    assert trending.event_time == clicks[-1].event_time

    # With the list settled, a user's row is that list without what the user had. `score` learns of the list a moment
    # before or after Cassandra does, so strangers come until it has.
    strangers = count(1)

    def like_the_trending_one() -> bool:
        user = f"early-stranger-{next(strangers)}"
        click = Click(f"{user}-1", user, expected[0], clicks[-1].event_time)
        oracle.click(click)
        job.click([click])
        job.eventually("a row", lambda: job.row(user) is not None)
        row = job.row(user)
        assert row is not None and row.source == "trending" and row.model_version == ""
        return len(row.item_ids) == 50 and row.item_ids == expected[1:51]

    job.eventually("a stranger's row is the trending list without what he had", like_the_trending_one)

    job.publish(make_release(tmp_path / "first", *FIRST))
    again = [Click(f"again-{u}", u, "item-000", clicks[-1].event_time) for u in list(oracle.events)]

    def by_model() -> bool:
        job.click([Click(f"m-{time.time_ns()}", "early-probe", "item-003", clicks[-1].event_time)])
        probe = job.row("early-probe")
        return probe is not None and probe.source == "model"

    job.eventually("the first model serves", by_model)
    for click in again:
        oracle.click(click)
    job.click(again)
    job.agree(oracle, FIRST)

    # A user with nothing but items the model never saw.
    job.click([Click("unknown-1", "early-unknown", "no-such-item", clicks[-1].event_time)])
    job.eventually("a row", lambda: job.row("early-unknown") is not None)
    unknown = job.row("early-unknown")
    assert unknown is not None and unknown.source == "trending" and unknown.item_ids
