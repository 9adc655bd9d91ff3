"""The local stack: `python -m deploy.local up | status | down | rotate | demo`."""

import sys
import time
from pathlib import Path
from typing import Annotated, Self

import typer
from rich.console import Console

from deploy.local import accounts
from deploy.local.config import REPOSITORY, ProjectSettings, load_local_settings
from deploy.local.ports import DEFAULT_BASE
from deploy.local.secure import ACCOUNTS
from deploy.local.stack import Stack
from deploy.local.status import render_status
from schemas.errors import ConfigError, run_command
from schemas.settings import load_settings, nearest
from streaming.config import Settings as JobSettings

JOB = REPOSITORY / "streaming" / "job.py"

# A traceback without the values of variables: some of them are secrets.
app = typer.Typer(help=__doc__, add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)
State = Annotated[Path | None, typer.Option(help="State folder [default: .freshrec in the repository].")]


@app.command()
def up(
    state: State = None,
    port_base: Annotated[int | None, typer.Option(help=f"First of 100 ports [default: {DEFAULT_BASE}].")] = None,
    free_ports: Annotated[bool, typer.Option("--free-ports", help="Take ports that are free.")] = False,
    taskmanagers: Annotated[int | None, typer.Option(help="Parallelism of the job [default: 1].")] = None,
    spares: Annotated[int | None, typer.Option(help="Warm TaskManagers for a quick recovery [default: 0].")] = None,
    namespace: Annotated[str | None, typer.Option(help="Prefix of topics, name of the keyspace.")] = None,
    metrics: Annotated[bool | None, typer.Option("--metrics", help="Prometheus endpoints, on every interface.")] = None,
    secure: Annotated[bool | None, typer.Option("--secure", help="TLS, accounts and rights: see SECURITY.md.")] = None,
    servers_only: Annotated[bool, typer.Option("--servers-only", help="Kafka and Cassandra, no job.")] = False,
) -> None:
    """Start Kafka, Cassandra and the job; return when all of them really answer."""
    local = load_local_settings(
        state=state, port_base=port_base, taskmanagers=taskmanagers, spares=spares, metrics=metrics, secure=secure
    )
    # Addresses in a settings file are those of other servers; only the name of the tenant is taken
    # from there.
    tenant = load_settings(ProjectSettings, namespace=namespace).namespace
    stack = Stack.create(local, tenant, free_ports)
    if not servers_only:
        # What the job would say to its own log is said here.
        load_settings(JobSettings, streaming={"parallelism": local.taskmanagers})
    with Report() as report:
        stack.start_servers(report)
        if not servers_only:
            stack.start_flink(JOB, report=report)
        stack.start_supervisor()
    _show_running(stack)


@app.command()
def status(state: State = None) -> None:
    """Show what runs; exit code 0 when everything does that should, else 1."""
    stack = Stack.open(load_local_settings(state=state).state)
    Console().print(render_status(stack))
    wanted = stack.plan.wanted
    healthy = bool(wanted) and all(server.trouble() is None for server in stack.servers())
    raise typer.Exit(0 if healthy and stack.supervisor.pid is not None else 1)


@app.command()
def down(
    state: State = None,
    wipe: Annotated[bool, typer.Option("--wipe", help="Remove all data too; fetched jars stay.")] = False,
) -> None:
    """Stop everything; data and checkpoints stay for the next `up`."""
    stack = Stack.open(load_local_settings(state=state).state)
    with Report() as report:
        stack.stop(report)
        if wipe:
            stack.wipe()
            report(f"{stack.state} is wiped")


@app.command()
def rotate(
    account: Annotated[str, typer.Argument(help=f"One of {', '.join(ACCOUNTS)}.")],
    state: State = None,
) -> None:
    """Give an account of a secure stack that runs a new password; whoever uses it reads its file again."""
    stack = Stack.open(load_local_settings(state=state).state)
    if (keys := stack.keys) is None:
        raise ConfigError(f"the stack in {stack.state} has no accounts", "start one with up --secure")
    if account not in ACCOUNTS:
        raise ConfigError(f"there is no account {account}", nearest(account, ACCOUNTS))
    accounts.rotate(stack.settings, keys, account)
    print(f"{account} has a new password, in {keys.password_file(account)}")


@app.command()
def demo(
    state: State = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running at the end.")] = False,
) -> None:
    """The whole loop on real servers, to a closing table; ends with everything stopped."""
    from deploy.demo.run import run_demo  # the model's libraries take seconds to import

    local = load_local_settings(state=state or load_local_settings().state / "demo")
    stack = Stack.create(local, free_ports=True)
    if running := stack.running():
        raise ConfigError(
            f"{', '.join(running)} still run in {stack.state}",
            f"run python -m deploy.local down --state {stack.state} first",
        )
    stack.wipe()
    stack = Stack.create(local, free_ports=True)
    # The trainer draws its own progress bar in the same terminal.
    with Report(plain=True) as report:
        try:
            run_demo(stack, report, Console())
        except BaseException:
            stack.stop(report)
            raise
        if not keep:
            stack.stop(report)
    if keep:
        _show_running(stack)
        print(f"stop it with: python -m deploy.local down --state {stack.state}")


def _show_running(stack: Stack) -> None:
    Console().print(render_status(stack))
    if stack.plan.port_base != DEFAULT_BASE or stack.plan.namespace or stack.plan.secure:
        print("For every other command of the project, in this terminal:")
        for key, value in stack.environment.items():
            print(f"export {key}='{value}'")


class Report:
    """Progress: one line that changes on a terminal, plain lines elsewhere."""

    def __init__(self, plain: bool = False) -> None:
        console = Console(stderr=True)
        self._began = time.monotonic()
        self._status = console.status("") if console.is_terminal and not plain else None

    def __enter__(self) -> Self:
        if self._status:
            self._status.start()
        return self

    def __call__(self, line: str) -> None:
        stamp = f"{time.monotonic() - self._began:5.1f} s  "
        if self._status:
            self._status.update(stamp + line)
        else:
            print(stamp + line, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()


def main() -> None:
    """Run a command; an error that has a cause and a remedy is one line and an exit code."""
    run_command(app)


if __name__ == "__main__":
    main()
