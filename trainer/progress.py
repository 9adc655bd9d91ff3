"""Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere.

Of several processes that learn together, the leader alone has a say.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from trainer.ranks import leads

# Often enough to see that it lives, rarely enough for a log.
SECONDS_BETWEEN_LINES = 5.0


class Advance(Protocol):
    """Call with the amount of work done since the last call, and a note to show."""

    def __call__(self, amount: int, note: str = "") -> None:
        """Move on."""


def say(line: str) -> None:
    """One line of the trainer's log."""
    if leads():
        print(f"trainer: {line}", flush=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Show the progress of `total` units of work while the block runs."""
    if sys.stdout.isatty() and leads():
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        title_column, share = TextColumn("{task.description}"), TextColumn("{task.percentage:.0f}%")
        note_column = TextColumn("{task.fields[note]}")
        with Progress(title_column, BarColumn(), share, TimeRemainingColumn(), note_column) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda amount, note="": bar.update(task, advance=amount, note=note)
        return
    done, shown = 0, time.monotonic()

    def advance(amount: int, note: str = "") -> None:
        nonlocal done, shown
        done += amount
        if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            say(f"{title} {100 * done // max(total, 1)} %{' · ' + note if note else ''}")

    yield advance
