"""The states of a shard's users: kept in Flink, and those met lately also here, so that they need not be read again.

What is written goes to Flink before the call returns; what lies here is a copy and may be dropped at any moment.
Reading one state costs a trip to Java and to RocksDB, ten times what all else costs that a user causes.
"""

from collections.abc import Sequence

from pyflink.datastream.state import MapState

# Two generations of so many bytes are remembered in a TaskManager: some 33 000 users each of 40 events, 80 000 of 4.
# Less: users who come back within minutes are read again. More: the model wants the memory.
GENERATION_BYTES = 48 * 1024 * 1024
# What a record costs beside its own bytes: its place in the table, its user's id, two objects.
OVERHEAD_BYTES = 150


class Users:
    """Records of users by id. The map is the one of the current key, and a user never changes their shard."""

    def __init__(self, kept: MapState, generation_bytes: int = GENERATION_BYTES) -> None:
        self._kept = kept
        self._generation_bytes = generation_bytes
        self._young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}

    @property
    def remembered(self) -> int:
        """How many records lie here, too."""
        return len(self._young) + len(self._old)

    def read(self, users: Sequence[str]) -> list[bytes | None]:
        """The records of these users; None for a user without one."""
        young, old = self._young, self._old
        found = [young.get(user) or old.get(user) for user in users]
        return [self._kept.get(user) if record is None else record for user, record in zip(users, found, strict=True)]

    def write(self, records: dict[str, bytes]) -> None:
        """Keep these records, all in one trip."""
        self._kept.put_all(records)
        self._young.update(records)
        each = sum(map(len, records.values())) // max(1, len(records)) + OVERHEAD_BYTES
        if len(self._young) * each > self._generation_bytes:
            self._young, self._old = {}, self._young

    def forget(self, user: str) -> None:
        """Drop the record of a user."""
        self._kept.remove(user)
        self._young.pop(user, None)
        self._old.pop(user, None)
