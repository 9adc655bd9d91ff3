"""The verb: reads events, lays out the protocol, lets the arms compete, reports."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from schemas.errors import ConfigError
from trainer.config import PACKAGED, heads_of, ms_of
from trainer.evaluate.arms import Arm
from trainer.evaluate.contestants import BASELINES, contestants, training_for
from trainer.evaluate.datasets import EVENTS_FORMAT, read
from trainer.evaluate.events import Events
from trainer.evaluate.harness import compete
from trainer.evaluate.network_arm import NETWORKS, NetworkArm, Training
from trainer.evaluate.protocols import PROTOCOLS, Step, steps_of
from trainer.evaluate.report import Report
from trainer.progress import say
from trainer.recipe import NetworkConfig
from trainer.sequences import Histories
from trainer.text import text_vectors

REPEATS = ("skip", "keep")
# Options that only network arms follow.
FITTED = ("width", "blocks", "dropout", "passes", "later_passes", "text_model")
OUT, TEXTS = Path(".freshrec/evaluate"), Path(".freshrec/texts")
# Characters of the table where there is no terminal to ask.
TABLE_WIDTH = 180


@dataclass(frozen=True)
class Options:
    """What can be asked for; see the help of `python -m trainer evaluate`."""

    source: Path
    format: str = EVENTS_FORMAT
    items: Path | None = None
    time_column: str | None = None
    protocol: str = "prequential"
    cut: float = 0.9
    first: float = 0.5
    period: str | None = None
    periods: int = 10
    repeats: str = "skip"
    history: int = 50
    arms: tuple[str, ...] = BASELINES
    seeds: tuple[int, ...] = (1,)
    limit_users: int | None = None
    out: Path | None = None
    width: int = 64
    blocks: int = 2
    dropout: float = 0.2
    passes: int = 4
    later_passes: int = 3
    text_model: str = PACKAGED


def evaluate(options: Options) -> Report:
    """Evaluate, print the table, write JSON and plot. Raises ConfigError, ContractError and what arms raise."""
    period_ms = _checked(options)
    events = read(options.source, options.format, options.items, options.time_column, options.limit_users)
    if events.clock == "place" and options.protocol != "leave-one-out":
        raise ConfigError(
            f"{events.name} has an order within each user alone, which cannot be cut in time",
            "use --protocol leave-one-out",
        )
    histories = events.histories(options.history, options.repeats == "keep")
    data = _described(events, histories)
    say(f"{data['name']}: {data['events']:,} events of {data['users']:,} users on {data['items']:,} items")
    for note in events.notes:
        say(f"  {note}")

    def steps() -> Iterator[Step]:
        own = None if period_ms is not None else events.period_moments
        return steps_of(options.protocol, histories, options.cut, options.first, period_ms, options.periods, own)

    training = _training(events, options) if set(NETWORKS) & set(options.arms) else None

    def network(name: str, seed: int) -> Arm:
        assert training is not None
        return NetworkArm(name, seed, training)

    items = events.vocabulary.size
    arms = contestants(options.arms, items, events.clock, options.protocol, network)
    runs = compete(arms, steps, items, options.seeds)
    report = Report(
        data, _protocol(options), options.seeds, tuple(runs), shlex.join(["python", "-m", "trainer", *sys.argv[1:]])
    )
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(report.table())
    for path in report.write(options.out or OUT / f"{events.name}-{options.protocol}"):
        say(f"wrote {path}")
    return report


def _training(events: Events, options: Options) -> Training:
    titles = [events.titles.get(item, "") for item in events.vocabulary.ids]
    text = text_vectors(titles, options.text_model, TEXTS)
    sizes = NetworkConfig(
        events.vocabulary.size,
        width=options.width,
        blocks=options.blocks,
        heads=heads_of(options.width),
        dropout=options.dropout,
        history=options.history,
        text=text.shape[1],
    )
    training = training_for(options.protocol, sizes, text, options.passes, options.later_passes)
    say(f"network arms: {sizes}")
    say(f"  first fit {training.first}")
    say(f"  later fits {training.later}")
    return training


def _checked(options: Options) -> int | None:
    """Refuse what no run can follow; returns the period in ms, None where it follows from the data."""
    if options.protocol not in PROTOCOLS:
        raise ConfigError(f"--protocol {options.protocol} is unknown", f"known ones are {', '.join(PROTOCOLS)}")
    if options.repeats not in REPEATS:
        raise ConfigError(f"--repeats {options.repeats} is unknown", "use skip or keep")
    if not options.seeds or not options.arms:
        raise ConfigError("there is nothing to run", "name one seed and one arm at least")
    for name, value in (
        ("history", options.history),
        ("periods", options.periods),
        ("limit-users", options.limit_users),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value} is too small", "give 1 or more")
    return None if options.period is None else ms_of("--period", options.period)


def _described(events: Events, histories: Histories) -> dict[str, Any]:
    return {
        "name": events.name,
        "events": len(histories),
        "users": histories.user_count,
        "items": events.vocabulary.size,
        "items_with_text": sum(item in events.titles for item in events.vocabulary.ids),
        "clock": events.clock,
        "from_ms": int(histories.event_time.min()),
        "until_ms": int(histories.event_time.max()),
        "understood": list(events.notes),
    }


def _protocol(options: Options) -> dict[str, Any]:
    asked = asdict(options)
    wanted = {
        "leave-one-out": ("repeats", "history"),
        "successive": ("cut", "repeats", "history"),
        "prequential": ("first", "period", "periods", "repeats", "history"),
    }[options.protocol]
    return {
        "name": options.protocol,
        **{name: asked[name] for name in (*wanted, *FITTED)},
        "limit_users": options.limit_users,
    }
