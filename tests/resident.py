"""How much memory a TaskManager really holds, and how much of it the Java heap does not explain.

The heap has a fixed bound and is touched for the first time over minutes, whatever the job does: growth that says
something is growth of the rest, which is Python's, ONNX Runtime's, RocksDB's and the JVM's own.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# The JVM places heap and classes where compressed pointers reach, far below all other anonymous memory of a process.
JAVA_BELOW = 64 * 2**30
MAPPING = re.compile(r"([0-9a-f]+)-[0-9a-f]+ \S+ \S+ \S+ (\d+)")


class Resident(NamedTuple):
    """Bytes: all of a process, and all but its Java heap and classes."""

    whole: int
    native: int


def resident(pid: int) -> Resident:
    """Of a process of this machine, as the kernel counts it. Raises FileNotFoundError when it has ended."""
    found = list(_mappings(pid))
    return Resident(sum(size for _, size in found), sum(size for java, size in found if not java))


def _mappings(pid: int) -> Iterator[tuple[bool, int]]:
    """Of each mapping whether it is Java's, and its resident bytes."""
    java = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if (mapping := MAPPING.match(line)) is not None:
            java = int(mapping[1], 16) < JAVA_BELOW and mapping[2] == "0"
        elif line.startswith("Rss:"):
            yield java, int(line.split()[1]) * 1024
