"""The trainer's command line: `python -m trainer VERB`.

cycle                 one cycle: collect ▸ tune ▸ shrink ▸ export ▸ judge ▸ publish
run --every 15m       cycles for ever
collect               only Kafka → Parquet
evaluate SOURCE       how well arms foresee the events of a file or a data set
shrink [VERSION]      a release → a smaller, faster one with a receipt; or --on DATA: what the ways do on data files
show                  the releases, their receipts, which one is announced, and what was refused
publish [FOLDER]      check a release folder and announce it: --stage shadow, or --stage canary --percent 5, or full
promote               let what is in shadow or canary serve everybody, or more users
roll-back [VERSION]   announce a former release again, or end a trial
make-key FILE         a key to sign releases with

cycle and run learn on several processes or hosts together as `torchrun --nproc-per-node 2 -m trainer VERB`.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from schemas.errors import ConfigError, ContractError, UnreachableError, run_command
from schemas.release import Stage
from schemas.settings import load_settings
from trainer.config import PACKAGED, Plan, Settings, ms_of, plan
from trainer.progress import say

if TYPE_CHECKING:
    from trainer.processes import Processes

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip

StageOption = Annotated[str, typer.Option(help="full: everybody; canary: a share of the users; shadow: compared only.")]
PercentOption = Annotated[int | None, typer.Option(min=1, max=99, help="The share of a canary.")]

# Characters of the widest table of releases.
TABLE_WIDTH = 160


def _ready() -> tuple[Settings, Plan]:
    settings = load_settings(Settings)
    return settings, plan(settings)


@contextmanager
def _at_work(planned: Plan) -> Iterator[Processes]:
    """Join the processes that learn together; the leader holds the folder alone, for all of them."""
    from trainer.files import only_one
    from trainer.processes import processes

    with processes(planned.threads) as together, ExitStack() as held:
        together.led(lambda: held.enter_context(only_one(planned.data)))
        yield together


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
    from trainer.cycle import Stopped
    from trainer.cycle import cycle as run_cycle

    settings, planned = _ready()
    for line in planned.lines():
        say(line)
    stop = _stop_on_signal()
    with _at_work(planned) as together:
        try:
            run_cycle(settings, planned, stop.is_set, together)
        except Stopped:
            say("stopped between two steps, as asked")


@app.command()
def run(
    every: Annotated[str, typer.Option(help="Time between two cycles: 90s, 15m, 1h.")] = "15m",
) -> None:
    """Run cycles until SIGTERM, which ends between two steps; overlapping ones become one."""
    from trainer.periodic import run_periodically

    settings, planned = _ready()
    for line in planned.lines():
        say(line)
    period, stop = ms_of("--every", every) / 1000, _stop_on_signal()
    with _at_work(planned) as together:
        run_periodically(settings, planned, period, stop, together)


@app.command()
def evaluate(
    source: Annotated[Path, typer.Argument(help="A CSV or Parquet file of events; or the folder of a data set.")],
    data_format: Annotated[
        str, typer.Option("--format", help="events, or the name of a data set, such as movielens-1m or yoochoose-100k.")
    ] = "events",
    items: Annotated[Path | None, typer.Option(help="A second file with item_id and title.")] = None,
    time_column: Annotated[str | None, typer.Option(help="Default: event_time, timestamp, order, period.")] = None,
    protocol: Annotated[str, typer.Option(help="leave-one-out, successive or prequential.")] = "prequential",
    cut: Annotated[float, typer.Option(help="successive: the share of events before the cut.")] = 0.9,
    first: Annotated[float, typer.Option(help="prequential: share of events before the first period.")] = 0.5,
    period: Annotated[str | None, typer.Option(help="prequential: the length of a period, such as 6h, 1d, 1w.")] = None,
    periods: Annotated[int, typer.Option(help="prequential: how many periods, where no length is given.")] = 10,
    repeats: Annotated[str, typer.Option(help="skip masks what a user already had; keep lets it come again.")] = "skip",
    history: Annotated[int, typer.Option(help="Events of a user that are read.")] = 50,
    arms: Annotated[str, typer.Option(help="Arms in the order of the table.")] = "popularity,last-item,vmis-knn",
    seeds: Annotated[str, typer.Option(help="Seeds, such as 1,2,3.")] = "1",
    limit_users: Annotated[int | None, typer.Option(help="Only so many users, for a quick look.")] = None,
    width: Annotated[int, typer.Option(help="Width of the network arms.")] = 64,
    blocks: Annotated[int, typer.Option(help="Blocks of the network arms.")] = 2,
    dropout: Annotated[float, typer.Option(help="Dropout of the network arms.")] = 0.2,
    passes: Annotated[int, typer.Option(help="Passes of a first fit, at most.")] = 4,
    later_passes: Annotated[int, typer.Option(help="Passes of a fine-tune.")] = 3,
    text_model: Annotated[str, typer.Option(help='Whose vectors stand for titles; "" = none.')] = PACKAGED,
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and result.png.")] = None,
) -> None:
    """Rank the next item among all items, with several arms: a table, result.json and result.png."""
    from trainer.evaluate.command import Options
    from trainer.evaluate.command import evaluate as evaluate_now

    evaluate_now(
        Options(
            source=source,
            format=data_format,
            items=items,
            time_column=time_column,
            protocol=protocol,
            cut=cut,
            first=first,
            period=period,
            periods=periods,
            repeats=repeats,
            history=history,
            arms=tuple(arm.strip() for arm in arms.split(",") if arm.strip()),
            seeds=seeds_of(seeds),
            limit_users=limit_users,
            out=out,
            width=width,
            blocks=blocks,
            dropout=dropout,
            passes=passes,
            later_passes=later_passes,
            text_model=text_model,
        )
    )


@app.command()
def shrink(
    version: Annotated[str | None, typer.Argument(help="Default: the newest release.")] = None,
    to: Annotated[
        list[str], typer.Option(help="Ways: lean, pruned, shared, int8, fp16, joined by commas; with --on, several.")
    ] = ["int8"],  # noqa: B006 - typer reads it
    on: Annotated[
        Path | None, typer.Option(help="Fit a model on this file or folder, as evaluate does, and shrink that one.")
    ] = None,
    data_format: Annotated[str, typer.Option("--format", help="--on: as of evaluate.")] = "events",
    history: Annotated[int, typer.Option(help="--on: events of a user that are read.")] = 50,
    limit_users: Annotated[int | None, typer.Option(help="--on: only so many users.")] = None,
    cut: Annotated[float, typer.Option(help="--on: the share of events that is learned, the rest is foreseen.")] = 0.9,
    width: Annotated[int, typer.Option(help="--on: width of the network.")] = 64,
    blocks: Annotated[int, typer.Option(help="--on: blocks of the network.")] = 2,
    passes: Annotated[int, typer.Option(help="--on: passes of the fit, at most.")] = 4,
    out: Annotated[Path | None, typer.Option(help="--on: folder for the graphs and receipt.json.")] = None,
) -> None:
    """Shrink a release, or a model of data files, and print the receipt."""
    from rich.console import Console

    from trainer.receipt import table_of
    from trainer.ways import ways_of

    each = {name: ways_of(name) for name in to}
    if not all(each.values()):
        raise ConfigError("none is no way to shrink a model", "name one, such as int8")
    if on is None:
        from trainer.files import only_one
        from trainer.shrink_release import shrink_release

        if len(each) > 1:
            raise ConfigError("one release is made, but several ways are named", "join them by commas in one --to")
        [[name, ways]] = each.items()
        _, planned = _ready()
        with only_one(planned.data):
            release = shrink_release(planned, version, ways)
        receipts, title = {name: release.manifest.receipt}, release.manifest.version
    else:
        from trainer.evaluate.shrinking import Trial, shrink_on

        trial = Trial(on, data_format, history, limit_users, cut, width, blocks, passes, out)
        receipts, title = shrink_on(trial, each)
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(table_of(receipts, title))


@app.command()
def show() -> None:
    """Show every release with its metrics and receipt, which one is announced, and what was refused."""
    from rich.console import Console

    from trainer.announce import told
    from trainer.show import overview

    settings, planned = _ready()
    try:
        messages, bad = told(settings)
    except UnreachableError as unreachable:
        messages, bad = None, {}
        print(f"what is announced is unknown: {unreachable}", file=sys.stderr)
    # A pipe has no width of its own: give it what the table needs.
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    console.print(overview(planned, messages, bad))


@app.command()
def publish(
    folder: Annotated[Path | None, typer.Argument(help="A release folder; default: the newest one.")] = None,
    stage: StageOption = "full",
    percent: PercentOption = None,
) -> None:
    """Check every digest of a release folder and announce it."""
    from trainer.announce import announce, told
    from trainer.publish import release_folders, verify

    share = _share(stage, percent)
    settings, planned = _ready()
    if folder is None and not (known := release_folders(planned.releases)):
        raise ContractError(f"there is no release in {planned.releases}", "run a cycle first")
    announce(settings, told(settings), verify((folder or known[-1]).absolute()), *share)


@app.command()
def promote(stage: StageOption = "full", percent: PercentOption = None) -> None:
    """Let what is in shadow or canary serve everybody, or with --stage canary --percent N more users."""
    from trainer.announce import promote as promote_now

    share = _share(stage, percent)
    promote_now(_ready()[0], *share)


@app.command()
def roll_back(
    version: Annotated[str | None, typer.Argument(help="Default: what serves beside a trial, else its parent.")] = None,
) -> None:
    """Announce a former release to everybody again; the job goes back to it. A trial ends."""
    from trainer.announce import roll_back as roll_back_now

    settings, planned = _ready()
    roll_back_now(settings, planned.releases, version)


@app.command()
def make_key(file: Annotated[Path, typer.Argument(help="Of the private key; FILE.pub lies beside it.")]) -> None:
    """Make a key for trainer.signing_key; the public one is for release_keys of the job."""
    from schemas.signing import make_key as make_now

    say(f"wrote {file} for trainer.signing_key; {make_now(file)} is for release_keys")


def _share(stage: str, percent: int | None) -> tuple[Stage, int]:
    """Stage and percentage as asked for. Raises ConfigError."""
    if stage not in get_args(Stage):
        raise ConfigError(f"--stage {stage} is no stage", f"one of {', '.join(get_args(Stage))}")
    if (stage == "canary") != (percent is not None):
        raise ConfigError("--percent says whom a canary serves", "give it with --stage canary, and only then")
    return cast(Stage, stage), 100 if percent is None else percent


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds of a list such as 1,2,3. Raises ConfigError."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"--seeds {text} is no list of whole numbers", "write it as 1,2,3") from error


def _stop_on_signal() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def main() -> None:
    """Run a command; a FreshrecError becomes one line on stderr and its exit code."""
    run_command(app, "trainer")


if __name__ == "__main__":
    main()
