"""The ways to shrink a model, by name; nothing here needs torch.

lean     the same numbers in a graph that leaves out needless work (see lean.py); part of every other way
pruned   without the least important heads and feed-forward units (see prune.py, recover.py)
shared   one block in place of all
int8     for CPUs: matrices, item rows and memory as whole numbers (see quantize.py)
fp16     for GPUs: half precision
"""

from __future__ import annotations

from schemas.errors import ConfigError

WAYS = ("lean", "pruned", "shared", "int8", "fp16")
NONE = "none"


def ways_of(text: str) -> tuple[str, ...]:
    """The ways of a list such as pruned,int8; none of "none". Raises ConfigError."""
    ways = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if ways == (NONE,):
        return ()
    unknown = [way for way in ways if way not in WAYS]
    if unknown or not ways:
        raise ConfigError(
            f"{', '.join(unknown) or 'nothing'} is no way to shrink a model",
            f"known ones are {NONE}, {', '.join(WAYS)}",
        )
    if {"int8", "fp16"} <= set(ways):
        raise ConfigError("a model is shrunk to int8 or to fp16, not to both", "leave one of them out")
    return ways
