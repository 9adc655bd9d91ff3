"""Where a secret of a stack could lie about: files, command lines, answers."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from deploy.local.secure import ACCOUNTS, Keys


class Onlooker:
    """Another user of the machine: sees the command lines of all processes, all the time."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Onlooker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ending.wait(0.2):
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    self.seen.add((folder / "cmdline").read_text(errors="replace"))
                except OSError:
                    continue


def secrets_of(keys: Keys) -> dict[str, bytes]:
    """Every secret of a stack by the name of its file; of a key a line of its text."""
    passwords = {file.name: file.read_bytes() for file in keys.folder.glob("*.password")}
    private = {
        file.name: file.read_bytes().splitlines()[1] for file in keys.folder.glob("*.pem") if file != keys.ca_file
    }
    assert len(passwords) == len(ACCOUNTS) + 1
    assert len(private) == 2
    assert all(len(secret) >= 40 for secret in (passwords | private).values())
    return passwords | private


def found_in(content: bytes, secrets: dict[str, bytes]) -> set[str]:
    return {name for name, secret in secrets.items() if secret in content}


def files_of(folder: Path, but: Path) -> Iterable[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink() and but not in file.parents)


def content_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""  # a checkpoint that was superseded meanwhile
