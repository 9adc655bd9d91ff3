"""What the gate said of every candidate, accepted or refused: one line each in DATA/verdicts.jsonl."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from schemas.errors import ModelRefused

_FILE = "verdicts.jsonl"


@dataclass(frozen=True)
class Verdict:
    """at: ms. parent: the release that served. refusal: why it may not serve; "" when it may.

    metrics: everything that was measured until then.
    """

    at: int
    version: str
    parent: str | None
    refusal: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


@contextmanager
def on_record(data: Path, version: str, parent: str | None) -> Iterator[dict[str, float]]:
    """Yield a dict for what is measured of a candidate; record it when the block ends or refuses the candidate."""
    metrics: dict[str, float] = {}
    try:
        yield metrics
    except ModelRefused as reason:
        _append(data, Verdict(_now_ms(), version, parent, reason.cause, metrics))
        raise
    _append(data, Verdict(_now_ms(), version, parent, "", metrics))


def verdicts(data: Path) -> list[Verdict]:
    """All verdicts, oldest first; a line that a crash cut short is left out."""
    file = data / _FILE
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            found.append(Verdict(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def _append(data: Path, verdict: Verdict) -> None:
    data.mkdir(parents=True, exist_ok=True)
    with (data / _FILE).open("a+b") as file:
        # A line that was cut short ends here, so that it spoils no other.
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(asdict(verdict), ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _now_ms() -> int:
    return int(time.time() * 1000)
