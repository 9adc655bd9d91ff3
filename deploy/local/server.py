"""What Kafka, Cassandra, a JobManager and a TaskManager have in common: start, answer, stop."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from string import Template

from deploy.local.process import Process
from schemas.errors import UnreachableError

HERE = Path(__file__).parent
POLL_S = 0.25
# A cold laptop disk: Cassandra takes 7 s here, a minute there. Beyond this it will not come.
PATIENCE_S = 180.0


class Server(ABC):
    """One process of the stack. `start` returns at once; `wait` until it really answers."""

    name: str
    process: Process

    @abstractmethod
    def ports(self) -> Mapping[str, int]:
        """The ports it listens on, by what they are for."""

    @abstractmethod
    def start(self) -> None:
        """Write its configuration and start the process. Nothing happens when it runs already."""

    @abstractmethod
    def trouble(self) -> str | None:
        """None when it does its work as a client sees it; else what is missing. Never raises."""

    def doomed(self) -> bool:
        """Whether waiting is in vain."""
        return self.process.pid is None

    def wait(self, patience_s: float = PATIENCE_S, supervised: bool = False) -> None:
        """Return when it answers.

        Raises UnreachableError when it does not within `patience_s` seconds, or is doomed before:
        dead, with no supervisor who would bring it back.
        """
        deadline = time.monotonic() + patience_s
        while (trouble := self.trouble()) is not None:
            late = time.monotonic() > deadline
            if late or (not supervised and self.doomed()):
                dead = self.process.pid is None
                what = (
                    "died while starting" if dead else f"does not answer after {patience_s:.0f} s" if late else "fails"
                )
                said = self.process.last_words() if dead else trouble
                raise UnreachableError(f"{self.name} {what}: {said}", f"read {self.process.log_file}")
            time.sleep(POLL_S)


def render(template: Path, target: Path, addition: Path | None = None, **values: object) -> Path:
    """Fill the ${…} of an annotated configuration, and of what is added to it: each must be given, each value used.

    The file is its owner's alone: it may hold a password.
    """
    text = Template("".join(part.read_text() for part in (template, addition) if part is not None))
    unused = values.keys() - set(text.get_identifiers())
    if unused:
        raise ValueError(f"{template.name} does not use {sorted(unused)}")
    filled = text.substitute({key: str(value) for key, value in values.items()})
    target.parent.mkdir(parents=True, exist_ok=True)
    return replace_secret(target, filled.encode())


def replace_secret(file: Path, content: bytes) -> Path:
    """Write a file that nobody else can read at any moment, and nobody reads half written."""
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
    return part.replace(file)
