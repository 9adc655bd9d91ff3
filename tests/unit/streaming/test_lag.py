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


def asked(monkeypatch: pytest.MonkeyPatch, *ends: int | None) -> Lag:
    """One that has asked so often, and was closed then."""
    kafka = Kafka(*ends)

    class Rounds:
        left = len(ends)

        def wait(self, pause_s: float) -> bool:
            assert pause_s == Settings().streaming.behind_ms / 2000
            self.left -= 1
            return self.left < 0

    class AtOnce:
        def __init__(self, target: Callable[[], None], **_options: Any) -> None:
            self.start = target

    def partitions(_consumer: Any, topics: list[str]) -> Iterator[tuple[str, int]]:
        return ((topic, partition) for topic in topics for partition in range(2))

    monkeypatch.setattr(lag, "looking", lambda *_: kafka)
    monkeypatch.setattr(lag, "partitions", partitions)
    monkeypatch.setattr("threading.Event", Rounds)
    monkeypatch.setattr("threading.Thread", AtOnce)
    found = Lag(Settings())
    assert kafka.closed
    return found


def test_behind_is_before_an_end_that_is_a_while_old(monkeypatch: pytest.MonkeyPatch) -> None:
    now = asked(monkeypatch, 10, 20, 30)
    assert now.behind(0, 0, 8)
    assert not now.behind(0, 0, 9), "the last of those that were there"
    assert not now.behind(0, 0, 15), "younger than that"
    assert not now.behind(0, 1, 0)
    assert not now.behind(1, 0, 0), "another topic"


def test_nobody_is_behind_before_a_while_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not asked(monkeypatch, 10, 20).behind(0, 0, 1)


def test_old_answers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, 10, 20, 30, 40).behind(0, 0, 18)


def test_a_kafka_that_does_not_answer_leaves_what_was_known_and_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = asked(monkeypatch, 10, 20, None, None, 30)
    assert [record.name for record in caplog.records] == ["lag"]
    assert (now.behind(0, 0, 8), now.behind(0, 0, 9)) == (True, False)
