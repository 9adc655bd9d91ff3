"""A record that could not be used, as it is kept for its producer."""

import hashlib
from dataclasses import dataclass

from schemas.avro import BadRecord, decode, encode

# Of a value and of a key: enough to see what a record was meant to be; the digest tells whole values apart. A broker
# that took a record of 1 MiB would not take it again with all that a dead letter adds: the job would never get past it.
KEPT_BYTES = 4096


@dataclass(frozen=True)
class DeadLetter:
    """Original value and key (their heads when longer than KEPT_BYTES), where they lay, and why. first_seen in ms."""

    value: bytes | None
    value_size: int
    value_sha256: str | None
    key: bytes | None
    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    first_seen: int
    job_version: str

    @property
    def whole(self) -> bool:
        """Whether the value is all that it was; no key that was cut is one that could be used."""
        return self.value_size == len(self.value or b"")


def bury(
    value: bytes | None,
    key: bytes | None,
    where: tuple[str, int, int],
    reason: str,
    detail: str,
    first_seen: int,
    job_version: str,
) -> DeadLetter:
    """The dead letter of one record; `where` is its topic, partition and offset."""
    size = len(value or b"")
    digest = hashlib.sha256(value).hexdigest() if value is not None and size > KEPT_BYTES else None
    head = value[:KEPT_BYTES] if value is not None else None
    key = key[:KEPT_BYTES] if key is not None else None
    return DeadLetter(head, size, digest, key, *where, reason, detail, first_seen, job_version)


def encode_dead_letter(letter: DeadLetter) -> bytes:
    """The Kafka value of a dead letter; its key is the original key."""
    return encode("dead_letter", vars(letter))


def decode_dead_letter(value: bytes | None, position: int = 0) -> DeadLetter | BadRecord:
    """One message of `dead-letters`. Never raises."""
    fields = decode("dead_letter", value, position)
    return fields if isinstance(fields, BadRecord) else DeadLetter(**fields)
