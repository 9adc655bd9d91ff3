"""What the job says when it takes a release out of service by itself, and what stands after all that was said."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from schemas.avro import BadRecord, SchemaById, decode, encode
from schemas.release import ModelRelease


@dataclass(frozen=True)
class RollBack:
    """The message on `roll-backs`: this release did harm, and its digest is not served again. at: ms."""

    version: str
    manifest_sha256: str
    reason: str
    at: int
    job_version: str


def encode_roll_back(roll_back: RollBack) -> bytes:
    """The Kafka value of a roll-back; its key is the version."""
    return encode("roll_back", vars(roll_back))


def decode_roll_back(
    value: bytes | None, position: int = 0, schema_by_id: SchemaById | None = None
) -> RollBack | BadRecord:
    """One message of `roll-backs`. Never raises."""
    fields = decode("roll_back", value, position, schema_by_id)
    return fields if isinstance(fields, BadRecord) else RollBack(**fields)


class Standing(NamedTuple):
    """full: what serves whoever no canary takes. trial: what is in shadow or canary beside it."""

    full: ModelRelease | None
    trial: ModelRelease | None


def standing(messages: Iterable[ModelRelease], blocked: Collection[str]) -> Standing:
    """What counts after these messages, oldest first, and roll-backs (digests of manifests).

    A full release, also the one that serves already, ends the trial of another.
    """
    full = trial = None
    for message in messages:
        if message.manifest_sha256 in blocked:
            continue
        if message.stage == "full":
            full, trial = message, None
        elif full is None or message.manifest_sha256 != full.manifest_sha256:
            trial = message
    return Standing(full, trial)
