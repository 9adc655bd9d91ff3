"""A slow steady feed from the benchmark's own process, which remembers what each user's row must know in the end."""

from __future__ import annotations

import time

from confluent_kafka import Producer

from tests.bench.world import Shop

# Encoded so many at a time: a pause of some milliseconds.
PART = 200


class Steady:
    """For rates up to some hundreds a second; above, a process of its own (feed.py)."""

    def __init__(self, producer: Producer, topic: str, shop: Shop, rate: float) -> None:
        self._producer, self._topic, self._shop, self._rate = producer, topic, shop, rate
        self.newest: dict[str, int] = {}
        self.sent = 0

    def send_for(self, seconds: float) -> None:
        """Send at the rate for so long."""
        began, count = time.monotonic(), int(seconds * self._rate)
        for first in range(0, count, PART):
            events = self._shop.events(min(PART, count - first))
            for place, (key, value) in enumerate(zip(events.keys, events.values, strict=True), first):
                time.sleep(max(0.0, began + place / self._rate - time.monotonic()))
                self._producer.produce(self._topic, value, key)
                self._producer.poll(0)
            for user, when in events.newest().items():  # what came last stands last
                self.newest.pop(user, None)
                self.newest[user] = when
        self.sent += count
