"""The trainer's command line: `python -m trainer VERB`.

cycle                 one cycle: collect ▸ tune ▸ export ▸ judge ▸ publish
run --every 15m       cycles for ever
collect               only Kafka → Parquet
show                  the releases, and which one is announced
publish FOLDER        check a release folder and announce it
roll-back [VERSION]   announce a former release again
"""

from __future__ import annotations

import re
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from schemas.errors import ConfigError, UnreachableError, run_command
from schemas.settings import load_settings
from trainer.config import Plan, Settings, plan
from trainer.progress import say

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip

# Characters of the widest table of releases.
TABLE_WIDTH = 128

_SECONDS = {"s": 1, "m": 60, "h": 3600}


def _ready() -> tuple[Settings, Plan]:
    settings = load_settings(Settings)
    return settings, plan(settings)


@app.command()
def collect() -> None:
    """Collect new clicks, items and erasures from Kafka into Parquet."""
    from trainer.collect import collect as collect_now
    from trainer.files import only_one

    settings, planned = _ready()
    with only_one(planned.data):
        collect_now(settings, planned.data)


@app.command()
def cycle() -> None:
    """Run one cycle and publish its release, if it is good enough."""
    from trainer.cycle import cycle as run_cycle

    settings, planned = _ready()
    for line in planned.lines():
        say(line)
    stop = _stop_on_signal()
    run_cycle(settings, planned, stop.is_set)


@app.command()
def run(
    every: Annotated[str, typer.Option(help="Time between two cycles: 90s, 15m, 1h.")] = "15m",
) -> None:
    """Run cycles until SIGTERM, which ends between two steps; overlapping ones become one."""
    from trainer.periodic import run_periodically

    settings, planned = _ready()
    for line in planned.lines():
        say(line)
    run_periodically(settings, planned, seconds_of(every), _stop_on_signal())


@app.command()
def show() -> None:
    """Show every release with its metrics, and which one is announced."""
    from trainer.publish import announced
    from trainer.show import releases_table

    settings, planned = _ready()
    try:
        messages = announced(settings)
    except UnreachableError as unreachable:
        messages = None
        print(f"what is announced is unknown: {unreachable}", file=sys.stderr)
    # A pipe has no width of its own: give it what the table needs.
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(releases_table(planned.releases, messages))


@app.command()
def publish(folder: Annotated[Path, typer.Argument(help="A release folder.")]) -> None:
    """Check every digest of a release folder and announce it."""
    from trainer.publish import announce, verify

    settings, _ = _ready()
    announce(settings, verify(folder.absolute()))


@app.command()
def roll_back(
    version: Annotated[str | None, typer.Argument(help="Default: the served one's parent.")] = None,
) -> None:
    """Announce a former release again; the job goes back to it."""
    from trainer.publish import roll_back as roll_back_now

    settings, planned = _ready()
    roll_back_now(settings, planned.releases, version)


def seconds_of(period: str) -> float:
    """Seconds of a period such as 90s, 15m or 1h. Raises ConfigError."""
    found = re.fullmatch(r"(\d+)([smh])", period.strip())
    if not found or int(found[1]) == 0:
        raise ConfigError(f"--every {period} is no period", "write it as 90s, 15m or 1h")
    return float(int(found[1]) * _SECONDS[found[2]])


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def main() -> None:
    """Run a command; a FreshrecError becomes one line on stderr and its exit code."""
    from trainer.cycle import Stopped

    try:
        run_command(app, "trainer")
    except Stopped:
        say("stopped between two steps, as asked")


if __name__ == "__main__":
    main()
