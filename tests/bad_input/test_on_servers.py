"""Bad input on real servers: what a running job does while nobody takes dead letters, and how they are replayed."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import StringIO

import pytest
from confluent_kafka.admin import AdminClient
from rich.console import Console

from deploy.local.config import REPOSITORY
from deploy.local.stack import Stack
from deploy.local.status import render_status
from deploy.local.topics import create_topics
from schemas.click import MAX_AHEAD_MS, Click, encode_click
from schemas.dead_letter import KEPT_BYTES
from schemas.errors import ContractError
from schemas.item import Item, encode_item
from schemas.topics import CLICKS, DEAD_LETTERS, ITEMS
from streaming.replay import REPLAYED
from streaming.table import check_tables
from tests.bad_input.cases import ERASURES, events
from tests.harness import RunningJob


@pytest.fixture(scope="module")
def job(start_job: Callable[..., RunningJob]) -> RunningJob:
    """A job without any release: it writes trending lists."""
    return start_job()


@pytest.fixture
def command(job: RunningJob) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m streaming …` against the job's servers."""
    env = {**job.environment, "COLUMNS": "250"}

    def run(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "streaming", *args]
        return subprocess.run(argv, env={**env, **more}, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)

    return run


def now() -> int:
    return int(time.time() * 1000)


def seen(job: RunningJob, user: str) -> Click:
    """A good click that was sent and became a row: what came before it was looked at, too."""
    click = Click(f"{user}-{time.time_ns()}", user, "item-1", now())
    job.click([click])
    job.eventually(f"{user} has a row", lambda: in_its_row(job, click))
    return click


def in_its_row(job: RunningJob, click: Click) -> bool:
    row = job.row(click.user_id)
    return row is not None and row.event_time >= click.event_time


def checkpointed(job: RunningJob) -> None:
    """Return when what the job has done until now is in a checkpoint: the one after the next began later than now."""
    rest = job.stack.rest

    def number() -> int:
        newest = rest.checkpoint(rest.jobs()[-1].id)
        return newest.number if newest else 0

    enough = number() + 2
    job.eventually("two checkpoints", lambda: number() >= enough)


def status_of(job: RunningJob) -> str:
    """What `python -m deploy.local status` prints."""
    out = StringIO()
    Console(file=out, width=400).print(render_status(job.stack))
    return out.getvalue()


def outcomes(answer: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], int]:
    """(reason, outcome) → records, of the table that replay prints."""
    assert answer.returncode == 0, answer.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in answer.stdout.splitlines() if "│" in line]
    found: Counter[tuple[str, str]] = Counter()
    for _, reason, outcome, count in rows:
        found[reason, outcome] += int(count)
    return dict(found)


def test_every_bad_record_comes_back_from_a_running_job(job: RunningJob) -> None:
    """Among them records of which a dead letter with all their bytes would be larger than what a broker takes."""
    sent: dict[tuple[str, int, int], tuple[str, bytes | None, bytes | None]] = {}
    for topic, table in ((CLICKS, events(now())), ("erasures", ERASURES)):
        for case in table.values():
            partition, offset = job.send(topic, case.key, case.value)
            sent[job.settings.topic(topic), partition, offset] = (case.reason, case.key, case.value)
    seen(job, "beside")
    job.eventually("all dead letters arrive", lambda: len(job.dead_letters()) >= len(sent))
    letters = {(letter.topic, letter.partition, letter.offset): letter for letter in job.dead_letters()}
    assert letters.keys() == sent.keys()
    for place, (reason, key, value) in sent.items():
        letter = letters[place]
        assert letter.reason == reason
        assert (letter.key or b"", letter.value or b"") == ((key or b"")[:KEPT_BYTES], (value or b"")[:KEPT_BYTES])
    job.eventually("all are counted", lambda: job.metric("features_dead_letters") == len(sent))
    assert job.metric("features_records") == len(sent) + job.metric("features_events")


def test_while_nobody_takes_dead_letters_the_job_waits_and_says_so_and_loses_none(job: RunningJob) -> None:
    checkpointed(job)  # else those of the test before would come again
    admin = AdminClient(job.settings.kafka.client())
    topic = job.settings.topic(DEAD_LETTERS)
    for future in admin.delete_topics([topic]).values():
        future.result()
    began = time.monotonic()
    bad, good = [], []
    try:
        for number in range(20):
            bad.append(job.send(CLICKS, b"waiting", f"nonsense {number}".encode()))
            good.append(Click(f"waits-{number}", f"waits-{number % 5}", "item-1", now()))
            job.click(good[-1:])
        job.eventually("its status says what it waits for", lambda: topic in status_of(job))
        said = time.monotonic() - began
    finally:
        create_topics(job.settings, click_partitions=2)
    again = time.monotonic()
    job.eventually(
        "all dead letters arrive",
        lambda: {(letter.partition, letter.offset) for letter in job.dead_letters()} == set(bad),
    )
    job.eventually("every good click is in its row", lambda: all(in_its_row(job, click) for click in good))
    print(f"said after {said:.0f} s, all there {time.monotonic() - again:.0f} s after the topic was")


def test_a_dead_letter_is_sent_again_once_its_time_has_come_and_only_once(
    job: RunningJob, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    # Two that are good in some seconds, one of them too long to lie whole in its dead letter; one that never will be.
    ahead_s = 12
    when = now() + MAX_AHEAD_MS + ahead_s * 1000
    early = [
        Click("early-1", "early", "item-2", when),
        Click("early-2", "early", "item-3", when + 1, context={"x": "y" * 6000}),
        Click("early-3", "early", "item-4", when),
    ]
    places = {job.send(CLICKS, click.user_id.encode(), encode_click(click)) for click in early}
    job.send(CLICKS, b"early", b"never")
    job.send(ITEMS, b"item-8", encode_item(Item("item-9")))
    # After the job's restarts some of the letters before are there twice.
    job.eventually(
        "they are dead letters", lambda: len({(d.topic, d.partition, d.offset) for d in job.dead_letters()}) == 25
    )
    found = outcomes(command("replay", "--dead-letters", "--dry-run", "--reason", "future", "--since", "2026-01-01"))
    assert found == {("future", "is still future"): 3}
    assert command("replay", "--dead-letters", "--until", "2026-01-01").stdout == "no such dead letters\n"
    time.sleep(max(0.0, (when + 2 - MAX_AHEAD_MS - now()) / 1000))
    found = outcomes(command("replay", "--dead-letters", "--dry-run", "--reason", "future"))
    assert found == {("future", "would be sent"): 3}
    assert job.row("early") is None
    found = outcomes(command("replay", "--dead-letters", "--reason", "future", "--limit", "1"))
    assert found == {("future", "sent again"): 1}
    everything = outcomes(command("replay", "--dead-letters"))
    assert everything[("future", "sent again")] == 2
    assert everything[("future", "was sent again before")] == 1
    assert everything[("wrong-key", "is still wrong-key")] == 1
    assert everything[("unknown-framing", "is still unknown-framing")] == 21
    marks = [letter for letter in job.dead_letters() if letter.reason == REPLAYED]
    assert {(mark.partition, mark.offset) for mark in marks} == places
    job.eventually("the user's newest click is in their row", lambda: in_its_row(job, early[1]))
    assert "sent again" not in [o for _, o in outcomes(command("replay", "--dead-letters"))]


def test_what_the_job_still_refuses_does_not_go_round_and_round(
    job: RunningJob,
    command: Callable[..., subprocess.CompletedProcess[str]],
    schema_registry: tuple[str, list[str]],
) -> None:
    """A command that knows a Schema Registry takes what a job without one refuses."""

    def framed(schema: int, value: bytes) -> bytes:
        return b"\0" + schema.to_bytes(4, "big") + value[10:]

    def refused() -> int:
        letters = [d for d in job.dead_letters() if (d.key or b"").startswith(b"framed")]
        return len({(d.topic, d.partition, d.offset, d.reason) for d in letters})

    for user in ("framed", "framed-erased"):
        job.send(CLICKS, user.encode(), framed(7, encode_click(Click(user, user, "item-1", now()))))
    for item in ("framed-newer", "framed-item"):
        job.send(ITEMS, item.encode(), framed(9, encode_item(Item(item, available=False))))
    job.eventually("all are refused", lambda: refused() == 4)
    job.erase("framed-erased")
    job.catalogue([Item("framed-newer")])
    replay = ("replay", "--dead-letters", "--reason", "unknown-framing")
    registry = {"FRESHREC_KAFKA__SCHEMA_REGISTRY_URL": schema_registry[0]}
    still = outcomes(command(*replay))[("unknown-framing", "is still unknown-framing")]
    found = outcomes(command(*replay, **registry))
    # What other tests left behind stays what it was.
    assert found.pop(("unknown-framing", "is still unknown-framing"), 0) == still - 4
    assert found == {
        ("unknown-framing", "sent again"): 2,
        ("unknown-framing", "is of a user who was erased since"): 1,
        ("unknown-framing", "was followed by newer word of the item"): 1,
    }
    job.eventually("both are refused again, and marked", lambda: refused() == 4 + 2 + 2)
    for _ in range(2):
        found = outcomes(command(*replay, **registry))
        assert ("unknown-framing", "sent again") not in found
        assert found[("unknown-framing", "was sent again before")] == 2
        assert found[("unknown-framing", "came back: the job is older than this command, or set up otherwise")] == 2
    assert refused() == 8


TABLES = {
    "a column too few": ("event_time timestamp,", "", "event_time is missing, not timestamp"),
    "another type": ("source text", "source int", "source is int, not text"),
    "a list that is not frozen": (
        "frozen<list<float>>",
        "list<float>",
        "scores is list<float>, not frozen<list<float>>",
    ),
    "another key": ("PRIMARY KEY (user_id)", "PRIMARY KEY (user_id, scored_at)", "its key is user_id, scored_at"),
}
TABLE = (
    "user_id text, item_ids frozen<list<text>>, scores frozen<list<float>>, source text, model_version text, "
    "event_time timestamp, scored_at timestamp, PRIMARY KEY (user_id)"
)


@pytest.fixture(scope="module")
def keyspace(stack: Stack, job: RunningJob) -> Iterator[str]:
    name = "unlike"
    replication = json.dumps({"class": "SimpleStrategy", "replication_factor": 1}).replace('"', "'")
    job.session.execute(f"CREATE KEYSPACE {name} WITH replication = {replication}")
    yield name
    job.session.execute(f"DROP KEYSPACE {name}")


@pytest.mark.parametrize(("old", "new", "difference"), TABLES.values(), ids=TABLES)
def test_a_table_unlike_the_schema_is_refused_with_the_difference(
    job: RunningJob, keyspace: str, old: str, new: str, difference: str
) -> None:
    job.session.execute(f"CREATE TABLE {keyspace}.recommendations ({TABLE.replace(old, new)})")
    try:
        with pytest.raises(ContractError) as refused:
            check_tables(job.session, keyspace)
        assert str(refused.value).startswith(f"table {keyspace}.recommendations is unlike the schema: {difference}")
    finally:
        job.session.execute(f"DROP TABLE {keyspace}.recommendations")


def test_check_ends_with_3_where_a_table_is_missing_or_unlike(
    job: RunningJob, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    fine = command("check")
    assert (fine.returncode, fine.stderr) == (0, "")
    job.session.execute(f"ALTER TABLE {job.settings.keyspace}.trending DROP source")
    try:
        answer = command("check")
    finally:
        job.session.execute(f"ALTER TABLE {job.settings.keyspace}.trending ADD source text")
    assert answer.returncode == 3
    assert answer.stderr == (
        f"error: table {job.settings.keyspace}.trending is unlike the schema: source is missing, not text; "
        "bring it to schemas/recommendation.cql\n"
    )
