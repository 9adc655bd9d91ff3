"""Which of several processes this one is, as `torchrun` says it in the environment; nothing here needs torch."""

from __future__ import annotations

import os


def leads() -> bool:
    """Whether this process is the first one, or alone."""
    return os.environ.get("RANK", "0") == "0"


def count() -> int:
    """How many processes learn together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_this_host() -> int:
    """How many of them this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def place_on_this_host() -> int:
    """Which of them this process is, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))
