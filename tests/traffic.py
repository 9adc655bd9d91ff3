"""Clicks for tests: made from a seed, with the catalogues of two releases that rank everything differently."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

from schemas.click import ACTIONS, Click
from tests.harness import RunningJob
from tests.oracle import Oracle

ITEM_IDS = [f"item-{number:03}" for number in range(120)]
# (item ids, favourites, version) of `make_release`.
FIRST = (ITEM_IDS, ITEM_IDS, "20260101-000000")
SECOND_IDS = [*ITEM_IDS, "new-1", "new-2"]
SECOND = (SECOND_IDS, SECOND_IDS[::-1], "20260102-000000")
TEN_DAYS_MS = 10 * 24 * 3600 * 1000


def make_clicks(
    seed: str, count: int, users: int, items: Sequence[str] = ITEM_IDS, now_ms: int | None = None
) -> list[Click]:
    """Clicks of the last ten days in order of time; every id begins with the seed."""
    choose = random.Random(seed)
    now = now_ms or int(time.time() * 1000)
    times = sorted(now - choose.randrange(TEN_DAYS_MS) for _ in range(count))
    return [
        Click(
            event_id=f"{seed}-{number}",
            user_id=f"{seed}-user-{choose.randrange(users)}",
            item_id=choose.choice(items),
            event_time=when,
            action=choose.choice(ACTIONS),
            value=choose.choice((None, 1.5)),
            context=choose.choice(({}, {"page": "home"})),
        )
        for number, when in enumerate(times)
    ]


def told(clicks: Sequence[Click]) -> Oracle:
    """The oracle after some clicks."""
    oracle = Oracle()
    for click in clicks:
        oracle.click(click)
    return oracle


@contextmanager
def visitors(job: RunningJob, per_second: float, seen: Callable[[int], tuple[str, str]]) -> Iterator[Callable[[], int]]:
    """Clicks that keep coming; yields how many have. seen: user and item of the nth."""
    done, sent = threading.Event(), [0]

    def feed() -> None:
        for number in count():
            user, item = seen(number)
            job.click([Click(f"visit-{number}", user, item, int(time.time() * 1000))])
            sent[0] = number + 1
            if done.wait(1 / per_second):
                break

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield lambda: sent[0]
    finally:
        done.set()
        thread.join()
