"""Behind is what was followed by other records a while ago, as Kafka says, whatever the clocks say."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from streaming import lag
from streaming.config import Settings
from streaming.lag import Lag

TOPICS = Settings().event_topics


class Kafka:
    """Answers with these ends of the first partition of clicks, one after the other; None: not at all."""

    def __init__(self, *ends: int | None) -> None:
        self.ends = iter(ends)
        self.closed = False

    def offsets_for_times(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        assert timeout > 0
        assert {place.offset for place in places} == {-1}
        end = next(self.ends)
        if end is None:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT))
        of_first = (TOPICS[0], 0)
        return [TopicPartition(p.topic, p.partition, end if (p.topic, p.partition) == of_first else 0) for p in places]

    def close(self) -> None:
        self.closed = True


def asked(monkeypatch: pytest.MonkeyPatch, *ends: int | None, still_before: int = -1) -> Lag:
    """One that has asked so often and was closed then. still_before: an answer before which the process stood still."""
    kafka = Kafka(*ends)
    behind_s = Settings().streaming.behind_ms / 1000

    class Rounds:
        asked, clock = 0, 1000.0

        def is_set(self) -> bool:
            return self.asked == len(ends)

        def wait(self, pause_s: float) -> None:
            assert pause_s == behind_s / 2
            Rounds.asked += 1
            Rounds.clock += behind_s if self.asked == still_before else pause_s

    class AtOnce:
        def __init__(self, target: Callable[[], None], **_options: Any) -> None:
            self.start = target

    def partitions(_consumer: Any, topics: list[str]) -> Iterator[tuple[str, int]]:
        return ((topic, partition) for topic in topics for partition in range(2))

    monkeypatch.setattr(lag, "looking", lambda *_: kafka)
    monkeypatch.setattr(lag, "partitions", partitions)
    monkeypatch.setattr("threading.Event", Rounds)
    monkeypatch.setattr("threading.Thread", AtOnce)
    monkeypatch.setattr("time.monotonic", lambda: Rounds.clock)
    found = Lag(Settings())
    assert kafka.closed
    return found


def newest_old(now: Lag) -> int:
    """The last offset that is behind, in the partition that has records."""
    return max((offset for offset in range(100) if now.behind(0, 0, offset)), default=-1)


def test_behind_is_before_an_end_that_is_a_while_old(monkeypatch: pytest.MonkeyPatch) -> None:
    now = asked(monkeypatch, 10, 20, 30)
    assert now.behind(0, 0, 8)
    assert not now.behind(0, 0, 9), "the last of those that were there"
    assert not now.behind(0, 0, 15), "younger than that"
    assert not now.behind(0, 1, 0)
    assert not now.behind(1, 0, 0), "another topic"


def test_what_is_there_at_the_start_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert newest_old(asked(monkeypatch, 10)) == 8
    assert newest_old(asked(monkeypatch, 10, 20)) == 8, "what came since is not"


def test_what_came_while_nobody_looked_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    assert newest_old(asked(monkeypatch, 10, 20, 30, 40)) == 18
    assert newest_old(asked(monkeypatch, 10, 20, 30, 40, still_before=3)) == 38
    assert newest_old(asked(monkeypatch, 10, 20, 30, 40, 50, 60, still_before=3)) == 38
    assert newest_old(asked(monkeypatch, 10, None, None, 40)) == 38, "Kafka did not answer meanwhile"
    assert newest_old(asked(monkeypatch, 10, 20, None)) == 8, "but while it does not, nothing is known of that"


def test_a_kafka_that_does_not_answer_leaves_what_was_known_and_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = asked(monkeypatch, 10, 20, 30, None, None)
    assert [record.name for record in caplog.records] == ["lag"]
    assert newest_old(now) == 8
