"""Files that appear whole or not at all, and stay."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file beside the target, sync it, rename it over the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A leading dot and no .parquet at the end: readers of a folder never pick it up.
    temporary = target.with_name(f".{target.name}.tmp")
    write(temporary)
    sync(temporary)
    temporary.replace(target)


def sync(path: Path) -> None:
    """Force a file or a folder's list of names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
