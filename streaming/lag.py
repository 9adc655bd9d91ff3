"""lag: whether what is read now has waited in Kafka for long.

Kafka is asked where its partitions end, now and again. A record before an end that is a while old has waited for as
long, and others after it. No clock of a producer has a say in it: those may be wrong by hours.
"""

import logging
import threading
import time
from collections import deque

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.errors import FreshrecError
from streaming.config import Settings
from streaming.offsets import partitions
from streaming.topic import ANSWER_S, looking

log = logging.getLogger("lag")

# Kafka's word for "where it ends", in place of a moment.
_END = -1
Ends = dict[tuple[int, int], int]


class Lag:
    """Knows where the partitions of the event topics ended `behind_ms` ago, or up to half as long before that.

    Where nobody looked for so long (this process has just started, or stood still, or Kafka did not answer) all that is
    there counts as old: nearly all of it is, and to know it only when another `behind_ms` have passed would cost as
    many rows as are made by then. Asks in a thread of its own. A Kafka that does not answer makes nobody late: older
    ends are passed sooner.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._behind_s = settings.streaming.behind_ms / 1000
        self._ends: Ends = {}
        self._closed = threading.Event()
        threading.Thread(target=self._ask, name="lag", daemon=True).start()

    def behind(self, kind: int, partition: int, offset: int) -> bool:
        """Whether the record that follows this one has waited for behind_ms. kind: index into the event topics."""
        return offset + 1 < self._ends.get((kind, partition), 0)

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()

    def _ask(self) -> None:
        # When it was asked, and the answer. The first of three is two pauses old when the third is there.
        answers: deque[tuple[float, Ends]] = deque(maxlen=3)
        topics, answered = self._settings.event_topics, True
        consumer: Consumer | None = None
        while not self._closed.is_set():
            try:
                if consumer is None:  # with the password of today
                    consumer = looking(self._settings, f"{self._settings.job_name}-look")
                    places = [TopicPartition(*place, _END) for place in partitions(consumer, topics)]
                now = time.monotonic()
                found = consumer.offsets_for_times(places, timeout=ANSWER_S)
                answered = True
                if answers and now - answers[-1][0] >= self._behind_s:
                    answers.clear()
                answers.append((now, {(topics.index(one.topic), one.partition): one.offset for one in found}))
                self._ends = answers[0][1]
            except (KafkaException, FreshrecError) as error:
                if answered:
                    log.warning("lag: Kafka does not say where its topics end; no row waits until it does (%s)", error)
                answered = False
                if consumer is not None:
                    consumer.close()
                consumer = None
            self._closed.wait(self._behind_s / 2)
        if consumer is not None:
            consumer.close()
