"""The benchmarks: `python -m tests.bench NAME… [--quick]`; NAME may be `all`.

    stages     µs of each stage on one core, beside ONNX Runtime and the raw driver
    backlog    events and rows a second from a full topic, beside the tuned consumer and PyFlink as in tutorials
    freshness  from produced to acknowledged at steady rates, beside the same
    swap       pauses and memory while models are changed under load
    recovery   from kill -9 to rows that are current
    growth     more users in state, more items to score
    scale      more TaskManagers

Each starts servers of its own on free ports, and ends them. Tables go to the terminal, JSON to tests/bench/results.
"""

from __future__ import annotations

from typing import Annotated

import typer

from schemas.errors import ConfigError, run_command
from tests.bench import backlog, freshness, growth, plots, recovery, scale, stages, swap

BENCHMARKS = {
    "stages": stages.measure,
    "backlog": backlog.measure,
    "freshness": freshness.measure,
    "swap": swap.measure,
    "recovery": recovery.measure,
    "growth": growth.measure,
    "scale": scale.measure,
}
# The main ones; each alone can be quick, too.
QUICK = ("stages", "backlog", "freshness")

app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def bench(
    names: Annotated[list[str], typer.Argument(help=f"Of {', '.join(BENCHMARKS)}; or all.")],
    quick: Annotated[bool, typer.Option("--quick", help=f"Less of everything; all is {', '.join(QUICK)}.")] = False,
) -> None:
    """Run benchmarks one after the other."""
    wanted = list(names) if names != ["all"] else list(QUICK if quick else BENCHMARKS)
    for name in wanted:
        if name not in BENCHMARKS:
            raise ConfigError(f"there is no benchmark {name}", f"name some of {', '.join(BENCHMARKS)}, or all")
    for name in wanted:
        BENCHMARKS[name](quick)
    for picture in plots.draw():
        print(f"drawn: {picture}")


if __name__ == "__main__":
    run_command(app)
