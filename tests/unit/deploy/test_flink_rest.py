"""What is told of a job's failure: the last two of its causes, and what the innermost says is wrong."""

from typing import Any

import pytest

from deploy.local.flink_rest import LONGEST_REASON, FlinkRest

POSITION = (
    "Fetch position FetchPosition{offset=14816, offsetEpoch=Optional.empty, currentLeader=LeaderAndEpoch{leader="
    "Optional[127.0.0.1:13592 (id: 1 rack: null isFenced: false)], epoch=4}} is out of range for partition clicks-1"
)
STACKTRACE = f"""java.lang.RuntimeException: One or more fetchers have encountered exception
\tat org.apache.flink.Reader.checkErrors(Reader.java:1)
Caused by: java.lang.RuntimeException: SplitFetcher thread 0 received unexpected exception while polling the records
\tat org.apache.flink.Fetcher.run(Fetcher.java:2)
Caused by: org.apache.flink.kafka.shaded.org.apache.kafka.OffsetOutOfRangeException: {POSITION}
\t... 6 more"""


def flink(monkeypatch: pytest.MonkeyPatch, *stacktraces: str) -> FlinkRest:
    """Flink after these failures, the newest first."""
    rest = FlinkRest("http://127.0.0.1:1")
    entries = [{"stacktrace": stacktrace} for stacktrace in stacktraces]

    def answer(self: FlinkRest, path: str) -> Any:
        assert path == "/jobs/a/exceptions?maxExceptions=1"
        return {"exceptionHistory": {"entries": entries}}

    monkeypatch.setattr(FlinkRest, "get", answer)
    return rest


def test_a_failure_is_told_by_its_last_causes_down_to_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flink(monkeypatch, STACKTRACE).failure("a") == (
        "RuntimeException: SplitFetcher thread 0 received unexpected exception while polling the records: "
        f"OffsetOutOfRangeException: {POSITION}"
    )


def test_a_failure_without_end_is_cut_and_none_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = flink(monkeypatch, "java.lang.Error: " + "x" * 10_000).failure("a")
    assert reason is not None and len(reason) == LONGEST_REASON and reason.startswith("Error: x")
    assert flink(monkeypatch).failure("a") is None
