"""What the processes of test_processes.py do: `python -m tests.unit.trainer.together WHAT FOLDER`."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.errors import ConfigError, FreshrecError, UnreachableError, run_command
from tests.unit.trainer.learning import ITEMS, chain, small_network
from trainer.files import only_one
from trainer.fit import Check, Fit, checked
from trainer.processes import Processes, processes
from trainer.recipe import Recipe
from trainer.sequences import next_items, windows_of_one_pass

DROPOUTS = (0.0, 0.2)


@dataclass
class Learned:
    """losses: of each step, of this process's share; those of all processes have the step's loss as their mean."""

    losses: list[float] = field(default_factory=list)
    loss_at_end: float = 0.0
    state: dict[str, Tensor] = field(default_factory=dict)

    def add_scalar(self, _: str, value: float, step: int) -> None:
        """Takes the curve that a fit draws."""
        self.losses += [0.0] * (step + 1 - len(self.losses))
        self.losses[step] = value


def learned(together: Processes, dropout: float) -> Learned:
    """A fit of some passes, the same in all respects but the processes and the dropout."""
    events = chain(users=80)
    network = small_network(dropout=dropout)
    found = Learned()
    torch.manual_seed(1 + together.rank)
    live, rng = torch.ones(ITEMS + 1, dtype=torch.bool), np.random.default_rng(1)
    curve: Any = found
    recipe = Recipe(passes=6, rate=3e-3, per_step=16, steps=100, average=0.98)

    fit = Fit(network, live, recipe, rng, together, curve)
    fit.passes("tune", events, lambda: windows_of_one_pass(events, rng), None)
    check = Check(events, next_items(events, int(np.quantile(events.event_time, 0.5))))
    found.loss_at_end, found.state = checked(network, check).loss, network.state_dict()
    return found


def learn(together: Processes, folder: Path) -> None:
    torch.save([vars(learned(together, dropout)) for dropout in DROPOUTS], folder / f"{together.rank}.pt")


def in_step(together: Processes, folder: Path) -> None:
    """Errors that are caught leave both where they were; the last one is not caught."""

    def note() -> int:
        with (folder / "log").open("a") as log:
            log.write(f"{together.rank}\n")
        return together.rank

    def unreachable() -> None:
        raise UnreachableError("Kafka is not there", "start it")

    def unshared() -> int:
        if together.rank == 1:
            raise ConfigError("one process sees no files", "share the folder")
        return 7

    tasks: tuple[Callable[[], object], ...] = (
        lambda: together.led(note),
        lambda: together.led(unreachable),
        lambda: together.leader_first(note),
        lambda: together.each(unshared, alike=lambda made: made),
        lambda: together.each(lambda: together.rank * 2, alike=lambda _: "same"),
        lambda: together.each(lambda: together.rank, alike=lambda made: made),
        lambda: together.led(lambda: only_one(folder).__enter__()),
        lambda: together.agree(together.rank),
        lambda: together.total(torch.tensor(together.rank + 1)).item(),
    )
    found = []
    for task in tasks:
        try:
            found.append(str(task()))
        except FreshrecError as error:
            found.append(f"{type(error).__name__}: {error.cause}")
    (folder / f"found-{together.rank}").write_text("\n".join(found))
    together.led(unreachable)


def leader_crash(together: Processes, _: Path) -> None:
    together.led(lambda: 1 // 0)


def death_of_one(together: Processes, _: Path) -> None:
    if together.rank == 1:
        os._exit(9)
    together.each(lambda: 7, alike=lambda made: made)


TASKS: tuple[Callable[[Processes, Path], None], ...] = (learn, in_step, leader_crash, death_of_one)


def main() -> None:
    task = next(task for task in TASKS if task.__name__ == sys.argv[1])

    def command() -> None:
        with processes(threads=2) as together:
            task(together, Path(sys.argv[2]))
        print(*(name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")))

    run_command(command, "trainer")


if __name__ == "__main__":
    main()
