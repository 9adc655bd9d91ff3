"""Files that appear whole or not at all, and folders with one writer."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import ConfigError
from schemas.release import ITEMS


def write_whole(target: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a temporary file beside the target, sync it, rename it over the target."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A leading dot and no .parquet at the end: readers of a folder never pick it up.
    temporary = target.with_name(f".{target.name}.tmp")
    write(temporary)
    sync(temporary)
    temporary.replace(target)


def item_ids_in(folder: Path) -> list[str]:
    """Item ids of a release folder in index order: the first has index 1."""
    return (folder / ITEMS).read_text(encoding="utf-8").split("\n")[:-1]


def sync(path: Path) -> None:
    """Force a file or a folder's list of names to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a folder alone for the length of a block. Raises ConfigError when it is held."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise ConfigError(
                f"another trainer works in {folder}", "wait for it, or set trainer.data to another"
            ) from held
        yield
