"""Cycles at fixed times; the times that one overran become one, right after it."""

from __future__ import annotations

import threading
import time

from schemas.errors import ModelRefused, UnreachableError
from trainer.config import Plan, Settings
from trainer.cycle import Stopped, cycle
from trainer.processes import Processes
from trainer.progress import say


def run_periodically(settings: Settings, plan: Plan, period: float, stop: threading.Event, together: Processes) -> None:
    """Run a cycle now and then every `period` seconds, until `stop` is set; the leader's clock and `stop` count.

    A refused model or an unreachable server ends one cycle, not the trainer; every other error is
    raised.
    """
    due = time.monotonic()

    def stopped_before_due() -> bool:
        return stop.wait(max(due - time.monotonic(), 0.0))

    while not together.led(stopped_before_due):
        try:
            cycle(settings, plan, stop.is_set, together)
        except (ModelRefused, UnreachableError) as error:
            say(f"this cycle published nothing: {error}")
        except Stopped:
            break
        missed = int((time.monotonic() - due) // period)
        if missed:
            say(f"the cycle ended {time.monotonic() - due:.0f} s after its time; {missed} overran times become one")
        due += period * max(missed, 1)
    say("stopped, as asked")
