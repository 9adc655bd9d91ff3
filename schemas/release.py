"""A release of a model: the immutable folder, and the message that names it.

The folder holds
    manifest.json   what is in the folder, with digests
    model.onnx      the graph: user histories in, item indices and scores out
    items           item ids, one a line; line n is index n of the graph, starting at 1
    warmup          .npz: inputs of some users and the outputs the trainer saw for them
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from schemas.avro import BadRecord, SchemaById, decode, encode
from schemas.errors import ModelRefused
from schemas.ids import id_trouble

MANIFEST, MODEL, ITEMS, WARMUP = "manifest.json", "model.onnx", "items", "warmup"
FILES = (MODEL, ITEMS, WARMUP)
OUTPUT_INDEX, OUTPUT_SCORE = "top_index", "top_score"
Stage = Literal["shadow", "canary", "full"]
# Also the name of its folder: nothing in it may lead elsewhere.
Version = Annotated[str, StringConstraints(pattern=r"^\d{8}-\d{6}$")]
# No manifest comes near it; larger ones are not read.
MANIFEST_BYTES = 1024 * 1024
# What ONNX can hold in one file.
FILE_BYTES = 2**31


class FileDigest(BaseModel):
    """Digest (lower-case hex) and size (bytes) of one file of a release."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    size: int = Field(ge=0, le=FILE_BYTES)


class Manifest(BaseModel):
    """What a release folder holds.

    version: "YYYYMMDD-HHMMSS", UTC. created_at: ms. history: events per user the graph reads.
    top_k: length of its lists. inputs: names the graph is fed, of those in `features.py` and "available".
    receipt: what shrinking the model cost and saved, by name; empty when it was not shrunk. X_before and X_after for
    X = parameters; bytes of the graph; session_bytes; p50_ms_B and p99_ms_B of a batch of B = 1, 64, 1024 users; ndcg;
    learn_steps and step_seconds of a cycle. Besides: ndcg_change, a share; top10_overlap with the model before;
    judged_events; optimisation_ratio of cycles.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: Version
    created_at: int
    parent: Version | None
    history: int
    top_k: int
    item_count: int
    inputs: list[str]
    files: dict[str, FileDigest]
    metrics: dict[str, float]
    trained_on: dict[str, Any]
    receipt: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True)
class ModelRelease:
    """The message on `model-releases`: what is to serve whom. Times in ms; see signing.py for the last three.

    stage: "full" serves everybody; "canary" `percent` of the users, beside what served before; "shadow" nobody: it is
    scored and compared only.
    """

    version: str
    uri: str
    manifest_sha256: str
    published_at: int
    stage: Stage = "full"
    percent: int = 100
    signature: bytes | None = None
    sequence: int = 0
    expires_at: int = 0

    @property
    def share(self) -> int:
        """The percentage of users who get its lists."""
        return {"shadow": 0, "canary": self.percent, "full": 100}[self.stage]


def encode_release(release: ModelRelease) -> bytes:
    """The Kafka value of a release; its key is the version."""
    return encode("model_release", vars(release))


def decode_release(
    value: bytes | None, position: int = 0, schema_by_id: SchemaById | None = None
) -> ModelRelease | BadRecord:
    """One message of `model-releases`. Never raises."""
    fields = decode("model_release", value, position, schema_by_id)
    if isinstance(fields, BadRecord):
        return fields
    if trouble := id_trouble(fields["version"].encode()):
        return BadRecord(position, "bad-id", f"version {trouble}")
    if not 0 <= fields["percent"] <= 100:
        return BadRecord(position, "bad-number", f"percent is {fields['percent']}")
    return ModelRelease(**fields)


def digest_of(content: bytes) -> FileDigest:
    """Digest and size of a file's content."""
    return FileDigest(sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def open_manifest(content: bytes, release: ModelRelease) -> Manifest:
    """The manifest, after its own digest agreed with the message. Raises ModelRefused."""
    if digest_of(content).sha256 != release.manifest_sha256:
        raise ModelRefused(
            f"{MANIFEST} of release {release.version} has digest {digest_of(content).sha256[:12]}…, "
            f"announced was {release.manifest_sha256[:12]}…",
            "publish the release again",
        )
    try:
        manifest = Manifest.model_validate(json.loads(content))
    except (ValidationError, ValueError, RecursionError) as error:
        raise ModelRefused(
            f"{MANIFEST} of release {release.version} is not a manifest ({str(error).splitlines()[0]})",
            "publish with the trainer of this version",
        ) from error
    if manifest.version != release.version:
        raise ModelRefused(
            f"the folder announced as release {release.version} holds {manifest.version}",
            "publish the release again",
        )
    return manifest


def check_file(manifest: Manifest, name: str, content: bytes) -> None:
    """Raises ModelRefused when a file is not the one the manifest was made for."""
    expected = manifest.files.get(name)
    if expected is None:
        raise ModelRefused(f"the manifest of {manifest.version} has no {name}", "publish the release again")
    if len(content) != expected.size:
        raise ModelRefused(
            f"{name} of release {manifest.version} has {len(content)} bytes, promised were {expected.size}",
            "publish the release again",
        )
    if digest_of(content) != expected:
        raise ModelRefused(f"{name} of release {manifest.version} has a wrong digest", "publish the release again")
