"""The job's command line: `python -m streaming run | check | lookup USER | inspect USER | replay --dead-letters`."""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from schemas.click import ACTIONS
from schemas.errors import ConfigError, run_command
from schemas.features import COUNTER_NAMES, counters
from schemas.ids import id_trouble
from schemas.item import Item
from schemas.recommendation import TRENDING_SCOPE, select_statement
from schemas.settings import load_settings
from schemas.topics import CLICKS, DEAD_LETTERS, ERASURES, ITEMS, MODEL_RELEASES, ROLL_BACKS
from streaming.config import Settings
from streaming.look import look_at
from streaming.model import load, scorer_threads
from streaming.offsets import committed, gaps, require_no_gap, spans
from streaming.table import check_tables, connect
from streaming.topic import catalogue, messages, served_release

# A traceback without the values of variables: some of them are secrets.
app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)
console = Console()


def _user(text: str) -> str:
    """A user id as events may have it. Raises ConfigError."""
    if trouble := id_trouble(text.encode(errors="surrogateescape")):
        raise ConfigError(f"user {text[:40]!r} {trouble}", "name one as events do")
    return text


User = Annotated[str, typer.Argument(help="A user id.", callback=_user)]


@app.command()
def run() -> None:
    """Run the job on the Flink cluster that starts this command (deploy.local up does it for this machine)."""
    from streaming.job import main as run_job  # Flink's Python API takes seconds to import

    run_job()


@app.command()
def check() -> None:
    """Touch every server and the model, as the job would, and change nothing."""
    settings = load_settings(Settings)
    for name, done in _checks(settings):
        console.print(f"[green]ok[/green]  {name}: {done}")


@app.command()
def lookup(user: User) -> None:
    """The list a service would read for a user, with titles, age, model and tier."""
    settings = load_settings(Settings)
    session = connect(settings)
    try:
        read = session.prepare(select_statement(settings.keyspace, "recommendations"))
        row = session.execute(read, (user,)).one()
        tier = "the user's own row"
        if row is None:
            read = session.prepare(select_statement(settings.keyspace, "trending"))
            row, tier = (
                session.execute(read, (TRENDING_SCOPE,)).one(),
                "the trending row: the user has none",
            )
    finally:
        session.cluster.shutdown()
    if row is None:
        console.print(plain(f"{user}: no row, and nothing is trending yet"))
        raise typer.Exit(1)
    age = time.time() - row.scored_at.replace(tzinfo=UTC).timestamp()
    console.print(plain(f"{user}: {tier}"), style="bold")
    console.print(f"source {row.source}, model {row.model_version or 'none'}, scored {_age(age)} ago")
    console.print(ranking(list(zip(row.item_ids or [], row.scores or [], strict=True)), catalogue(settings)))


@app.command()
def inspect(user: User) -> None:
    """A user's state, the model's inputs, and the candidates with their scores."""
    found = look_at(load_settings(Settings), user)
    state = found.state[0]
    events = Table("event time", "action", "item", "title", "gap", title=plain(f"{user}: the last events"))
    for place in np.flatnonzero(state["item"]).tolist():
        item_id = found.names[int(state["item"][place])]
        known = "" if found.model is None or found.inputs["item_index"][0, place] else " (unknown to the model)"
        events.add_row(
            datetime.fromtimestamp(state["event_time"][place] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            ACTIONS[state["action"][place]],
            plain(item_id + known),
            _title(found.items, item_id),
            str(found.inputs["gap"][0, place]) if found.inputs else "",
        )
    console.print(events)
    features = Table("feature", "log(1 + x)", title="counters above zero")
    for name, value in zip(COUNTER_NAMES, counters(found.state)[0].tolist(), strict=True):
        if value:
            features.add_row(name, f"{value:.3f}")
    console.print(features)
    if found.model is None:
        console.print("no release is announced: the user gets the trending list")
    else:
        console.print(f"release {found.model.manifest.version} on {found.model.provider}")
        console.print(ranking(found.candidates, found.items))


@app.command()
def replay(
    dead_letters: Annotated[bool, typer.Option("--dead-letters", help="Those that can be used by now.")] = False,
    reason: Annotated[list[str] | None, typer.Option(help="Only of this reason; may be given again.")] = None,
    since: Annotated[str | None, typer.Option(help="First seen then or later: 2026-11-24T08:00, UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="First seen before.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Send so many at most.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Send records again that were dead letters and are good by now; never the same one twice."""
    from streaming.replay import Selection
    from streaming.replay import replay as replay_now

    if not dead_letters:
        raise ConfigError("replay of what is not said", "add --dead-letters")
    selection = Selection(
        reasons=frozenset(reason or ()),
        since=_moment("--since", since) if since else Selection.since,
        until=_moment("--until", until) if until else Selection.until,
        limit=limit or Selection.limit,
    )
    counts = replay_now(load_settings(Settings), selection, dry_run)
    table = Table("topic", "reason", "outcome", "records")
    for (topic, why, outcome), count in sorted(counts.items()):
        table.add_row(topic, why, outcome, str(count))
    console.print(table if counts else "no such dead letters")


def _moment(flag: str, text: str) -> int:
    """Milliseconds of an ISO 8601 time, UTC where it says nothing else. Raises ConfigError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{flag} {text} is no time", "write it as 2026-11-24T08:00") from error
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def _checks(settings: Settings) -> Iterator[tuple[str, str]]:
    for name in (CLICKS, ITEMS, ERASURES, MODEL_RELEASES, ROLL_BACKS, DEAD_LETTERS):
        first: Any = next(messages(settings, settings.topic(name)), None)
        yield f"topic {settings.topic(name)}", "has messages" if first is not None else "is empty"
    positions = committed(settings)
    held = spans(settings, settings.event_topics)
    require_no_gap(gaps(positions, held))
    behind = sum(held[place][1] - position for place, position in positions.items())
    yield "position", f"Kafka holds all that comes next; {behind} events lie behind what the job last told Kafka"
    session = connect(settings)
    try:
        check_tables(session, settings.keyspace)
    finally:
        session.cluster.shutdown()
    yield f"keyspace {settings.keyspace}", "its tables are as in the schema"
    release = served_release(settings)
    if release is None:
        yield "model", "none is announced; users get the trending list"
        return
    section = settings.streaming
    model = load(release, section.providers, scorer_threads(section.scorer_threads, 1), sys.executable)
    yield (
        f"model {model.manifest.version}",
        f"{model.vocabulary.size} items, loaded and warm in {model.seconds:.1f} s on {model.provider}",
    )


def ranking(ranked: list[tuple[str, float]], items: dict[str, Item]) -> Table:
    """Items with title and score (item id, score), best first, as a table."""
    table = Table("rank", "item", "title", "score")
    for rank, (item_id, score) in enumerate(ranked, 1):
        table.add_row(str(rank), plain(item_id), _title(items, item_id), f"{score:.3f}")
    return table


def _title(items: dict[str, Item], item_id: str) -> Text:
    item = items.get(item_id)
    return plain((item.title if item else None) or "")


def plain(text: str) -> Text:
    """What others wrote, as they wrote it: neither markup of ours nor commands for a terminal."""
    return Text("".join(c for c in text if c.isprintable()))


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def main() -> None:
    """Run a command; an error of the project is one line and an exit code."""
    run_command(app)


if __name__ == "__main__":
    main()
