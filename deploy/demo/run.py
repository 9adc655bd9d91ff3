"""A real shop's year, learned and served, from nothing to a closing table. `python -m deploy.local demo` runs it.

1. servers and job start, in a state folder of the demo's own
2. the shop's catalogue and all but its last weeks go into Kafka
3. the trainer learns from what Kafka has, and releases a first model
4. the last weeks are replayed as live traffic; lists of a few users are shown before and after
5. meanwhile the trainer learns from what arrived, and the new model comes in while events flow
6. every row is scored once more outside the job and compared
"""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Producer
from rich.console import Console

from deploy.demo import data
from deploy.demo.recount import recount
from deploy.demo.tables import Watched, closing_table, lists_table
from deploy.local.config import REPOSITORY
from deploy.local.metrics import job_metrics
from deploy.local.stack import Report, Stack
from schemas.click import Click, encode_click
from schemas.errors import FreshrecError
from schemas.item import encode_item
from schemas.recommendation import select_statement
from schemas.settings import load_settings
from schemas.topics import CLICKS, ITEMS
from streaming.config import Settings
from streaming.metrics import bucket_names
from streaming.table import connect

JOB = REPOSITORY / "streaming" / "job.py"
# Live events a second: some hundred times the shop's own pace, a quarter of what two cores carry beside a trainer.
PER_SECOND = 150
# Live events before the trainer's second cycle begins; and after the swap, so that its effects show.
BEFORE_CYCLE = 2000
AFTER_SWAP_S = 20.0
SHOWN_USERS = 3
SHOWN_ITEMS = 5
COUNTED = (
    "features_records", "features_events", "features_duplicates", "features_late", "features_dead_letters",
    "write_rows", "score_by_model", "score_by_trending", "score_swaps", "score_model_version",
    "write_longest_pause_ms",
)  # fmt: skip


class Demo:
    """One run of the demo on a stack of its own."""

    def __init__(self, stack: Stack, report: Report) -> None:
        self.stack = stack
        self.report = report
        self.environment = {
            **os.environ,
            **stack.environment,
            "FRESHREC_TRAINER__DATA": str(stack.state / "trainer"),
            "FRESHREC_TRAINER__RELEASES": str(stack.state / "releases"),
            "PYTHONPATH": str(REPOSITORY),
        }
        common = stack.settings
        self.settings = load_settings(
            Settings, namespace=common.namespace, kafka=common.kafka, cassandra=common.cassandra
        )
        self.producer = Producer({**common.kafka.client(), "acks": "all", "linger.ms": 2})
        self.titles = {item.item_id: item.title or item.item_id for item in data.items()}
        self.sent = 0

    # ── the steps ────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Servers, topics, tables, job."""
        self.stack.start_servers(self.report)
        self.stack.start_flink(JOB, report=self.report)
        self.stack.start_supervisor()

    def load(self) -> None:
        """Catalogue and history into Kafka."""
        for item in data.items():
            self._produce(ITEMS, item.item_id, encode_item(item))
        history = data.history()
        for number, click in enumerate(data.clicks(history), 1):
            self._produce(CLICKS, click.user_id, encode_click(click))
            if number % 50_000 == 0:
                self.report(f"{number:,} of {history.height:,} purchases are in Kafka")
        self._flush()
        self.sent = history.height
        self.report(f"{len(self.titles):,} items and {history.height:,} purchases are in Kafka")

    def train(self) -> None:
        """A cycle of the trainer, its own progress shown. Raises FreshrecError when it fails."""
        done = subprocess.run([sys.executable, "-m", "trainer", "cycle"], env=self.environment, cwd=REPOSITORY)
        _require(done.returncode, "its message is above")

    def caught_up(self) -> None:
        """Wait until the job has read everything that was sent."""
        while (read := self.counts()["features_records"]) < self.sent:
            self.report(f"the job has read {read:,} of {self.sent:,} events")
            time.sleep(1.0)

    def serve_first(self, probes: Sequence[Click]) -> int:
        """Send clicks one by one until a row is of a model; returns how many it took."""
        for number, click in enumerate(probes, 1):
            self.click([click], PER_SECOND)
            if self.counts()["score_swaps"]:
                return number
            time.sleep(0.5)
        raise FreshrecError("the job did not load the release", f"read {self.stack.state / 'log'}")

    def click(self, clicks: Sequence[Click], per_second: float) -> None:
        """Live traffic at a steady rate; returns when all of it is acknowledged by Kafka."""
        began = time.monotonic()
        for number, click in enumerate(clicks):
            time.sleep(max(0.0, began + number / per_second - time.monotonic()))
            self._produce(CLICKS, click.user_id, encode_click(click))
        self._flush()
        self.sent += len(clicks)

    def counts(self) -> Counter[str]:
        """The job's counters now."""
        return job_metrics(self.stack.rest, [*COUNTED, *bucket_names()])

    # ── what a reader sees ───────────────────────────────────────────────────────────────────────

    def lists(self, users: Sequence[str]) -> dict[str, tuple[list[str], str]]:
        """Titles and model of each user's row."""
        session = connect(self.settings)
        read = session.prepare(select_statement(self.settings.keyspace, "recommendations"))
        found: dict[str, tuple[list[str], str]] = {}
        for user in users:
            row: Any = session.execute(read, (user,)).one()
            if row is not None:
                titles = [self.titles.get(item, item) for item in row.item_ids or []]
                found[user] = (titles[:SHOWN_ITEMS], row.model_version or row.source)
        session.cluster.shutdown()
        return found

    def titles_of(self, items: Sequence[str]) -> list[str]:
        """Titles of the last few items, the newest first."""
        return [self.titles.get(item, item) for item in reversed(items[-SHOWN_ITEMS:])]

    def _produce(self, topic: str, key: str, value: bytes) -> None:
        while True:
            try:
                self.producer.produce(self.settings.topic(topic), value, key.encode())
                self.producer.poll(0)
                return
            except BufferError:
                self.producer.poll(0.05)

    def _flush(self) -> None:
        if left := self.producer.flush(60):
            raise FreshrecError(f"Kafka did not acknowledge {left} records", f"read {self.stack.state / 'log'}")


def run_demo(stack: Stack, report: Report, console: Console) -> None:
    """Everything from the first server to the closing table. Raises FreshrecError."""
    demo = Demo(stack, report)
    began = time.monotonic()
    demo.start()
    demo.load()
    report("the trainer learns from Kafka")
    demo.train()
    demo.caught_up()
    live = list(data.clicks(data.live()))
    used = demo.serve_first(live[:60])
    report(f"the first model serves; {len(live):,} purchases follow as live traffic, {PER_SECOND} a second")

    before = demo.counts()
    first = live[used : used + BEFORE_CYCLE]
    demo.click(first, PER_SECOND)
    rest = live[used + BEFORE_CYCLE :]
    watched = _watch(demo, first, rest)
    swap = _replay_and_learn(demo, rest)
    demo.caught_up()
    time.sleep(2.0)  # metrics are up to a second old
    demo.counts()
    time.sleep(1.5)
    after = demo.counts()

    for user in watched:
        console.print(lists_table(_after(demo, user, rest[: swap.replayed])))
    report("every row is scored once more outside the job")
    checked = recount(demo.settings)
    console.print(closing_table(stack.flink_url, after, after - before, swap, checked, time.monotonic() - began))
    if checked.wrong:
        raise FreshrecError(f"{checked.wrong} rows are not what one model makes of their user", "report this")


@dataclass
class Swap:
    """What happened while the second model came in. replayed: live events sent meanwhile."""

    replayed: int
    longest_gap_ms: int
    usual_gap_ms: int


def _replay_and_learn(demo: Demo, clicks: list[Click]) -> Swap:
    """Replay while the trainer runs a cycle in another process; end some time after the new model serves."""
    trainer = subprocess.Popen(
        [sys.executable, "-m", "trainer", "cycle"],
        env=demo.environment,
        cwd=REPOSITORY,
        stdout=(demo.stack.state / "log" / "trainer.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    demo.report("a cycle of the trainer learns from what arrived, while traffic goes on")
    swaps = demo.counts()["score_swaps"]
    usual = longest = 0
    swapped_at: float | None = None
    stop = threading.Event()
    sent = 0

    def feed() -> None:
        nonlocal sent
        while not stop.is_set() and sent < len(clicks):
            demo.click(clicks[sent : sent + PER_SECOND], PER_SECOND)
            sent += PER_SECOND

    feeder = threading.Thread(target=feed, name="feeder")
    feeder.start()
    try:
        while feeder.is_alive():
            counts = demo.counts()
            pause = counts["write_longest_pause_ms"]
            if trainer.poll() is None:
                # The last one before the release: earlier ones reach back to when there was no traffic.
                usual = pause
            elif trainer.returncode:
                _require(trainer.returncode, f"read {demo.stack.state / 'log' / 'trainer.log'}")
            else:
                longest = max(longest, pause)
            if swapped_at is None and counts["score_swaps"] > swaps:
                swapped_at = time.monotonic()
                demo.report("the new model serves")
            if swapped_at is not None and time.monotonic() > swapped_at + AFTER_SWAP_S:
                break
            time.sleep(1.0)
    finally:
        stop.set()
        feeder.join()
        if trainer.poll() is None:
            trainer.terminate()
            trainer.wait()
    if swapped_at is None:
        raise FreshrecError(
            "the second model did not come in during the replay",
            "read the job's and trainer's logs",
        )
    return Swap(sent, longest, usual)


def _watch(demo: Demo, first: list[Click], rest: list[Click]) -> list[Watched]:
    """A few users with a list of the first model who soon buy again."""
    soon = Counter(click.user_id for click in rest[:BEFORE_CYCLE])
    known = {click.user_id for click in first}
    users = [user for user, count in soon.most_common() if user in known and count >= 3][:SHOWN_USERS]
    lists = demo.lists(users)
    history = data.history().tail(200_000)
    watched = []
    for user in users:
        bought = history.filter(history["user_id"] == user)["item_id"].to_list()
        bought += [click.item_id for click in first if click.user_id == user]
        titles, model = lists[user]
        watched.append(Watched(user, demo.titles_of(bought), titles, model))
    return watched


def _after(demo: Demo, user: Watched, replayed: list[Click]) -> Watched:
    """The same user after the replay."""
    bought = [click.item_id for click in replayed if click.user_id == user.user_id]
    user.bought = demo.titles_of(bought)
    user.after, user.after_model = demo.lists([user.user_id])[user.user_id]
    return user


def _require(exit_code: int, where: str) -> None:
    if exit_code:
        raise FreshrecError(f"the trainer ended with exit code {exit_code}", where)
