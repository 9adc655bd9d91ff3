"""Who may say what is served: Ed25519 signatures over release messages.

A signature covers every field of the message and the topic it is for; the message names the manifest's digest, the
manifest the digest of every file. So one signature covers a release to its last byte, and no message can be moved to
another tenant's topic. A sequence number, higher than any before, keeps an old message from being sent again; an expiry
keeps somebody who holds newer messages back from having an old one served for ever.
The library behind it deadlocks when it is imported or called in a task thread of Flink, like ONNX Runtime: verify in
Python's own threads alone.
"""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from schemas.errors import ConfigError
from schemas.release import ModelRelease

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

# What is signed begins with this, so that a signature made for anything else never fits; changes with the fields.
PURPOSE = b"freshrec release 2\n"
SIGNED = (
    "version", "uri", "manifest_sha256", "stage", "percent", "published_at", "sequence", "expires_at",
)  # fmt: skip
_END = b"-----END PUBLIC KEY-----"
MAKE_ONE = "make one with `python -m trainer make-key FILE`"


class Refusal(NamedTuple):
    """Why a message counts for nothing. reason: a stable code for machines. detail: for people."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Trust:
    """Whose signature is asked for: raw public keys of 32 bytes. Without any, no signature is."""

    keys: tuple[bytes, ...] = ()

    def refusal(self, release: ModelRelease, topic: str) -> Refusal | None:
        """Why a message is not signed as it must be, or None. Never raises."""
        if not self.keys:
            return None
        if release.signature is None:
            return Refusal("release-unsigned", f"release {release.version} is not signed, but a key is configured")
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        said = statement(release, topic)
        for key in self.keys:
            try:
                Ed25519PublicKey.from_public_bytes(key).verify(release.signature, said)
            except InvalidSignature:
                continue
            return None
        return Refusal(
            "release-signature",
            f"the signature of release {release.version} is of none of the {len(self.keys)} configured keys, "
            "or what it says was altered",
        )


def statement(release: ModelRelease, topic: str) -> bytes:
    """What is signed: one line of JSON, keys in order."""
    fields = {name: getattr(release, name) for name in SIGNED}
    return PURPOSE + json.dumps({"topic": topic, **fields}, sort_keys=True).encode()


def sign(release: ModelRelease, topic: str, key: "Ed25519PrivateKey") -> ModelRelease:
    """The message with its signature."""
    return replace(release, signature=key.sign(statement(release, topic)))


def stale(release: ModelRelease, last_sequence: int, now_ms: int) -> Refusal | None:
    """Why a signed message comes too late: another with its number or a higher one was taken, or it has expired."""
    if release.sequence <= last_sequence:
        return Refusal(
            "release-sequence",
            f"release {release.version} has sequence {release.sequence}, but {last_sequence} was taken before",
        )
    if 0 < release.expires_at <= now_ms:
        late = (now_ms - release.expires_at) / 1000
        return Refusal("release-expired", f"the message for release {release.version} expired {late:.0f} s ago")
    return None


def read_trust(path: Path | None) -> Trust:
    """The public keys (PEM) of a file, or of a folder's files named *.pub; no path, no keys. Raises ConfigError."""
    if path is None:
        return Trust()
    files = sorted(path.glob("*.pub")) if path.is_dir() else [path]
    keys = [key for file in files for key in _public_keys(file)]
    if not keys:
        raise ConfigError(f"release_keys = {path} holds no public key", MAKE_ONE)
    return Trust(tuple(dict.fromkeys(keys)))


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """The key (PEM, not encrypted) of a file that nobody but its owner can read. Raises ConfigError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"others than its owner may read the key {path}", f"chmod 600 {path}")
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no private key in PEM without a password ({error})", MAKE_ONE) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} is a key of another kind than Ed25519", MAKE_ONE)
    return key


def public_bytes(key: "Ed25519PrivateKey") -> bytes:
    """The raw public key that belongs to a private one."""
    return key.public_key().public_bytes_raw()


def make_key(path: Path) -> Path:
    """Write a new private key, and its public one beside it (.pub), which is returned. Raises ConfigError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    except FileExistsError as error:
        raise ConfigError(f"{path} is there already", "name another file: a key is never written over") from error
    public = path.with_name(path.name + ".pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def _public_keys(file: Path) -> Iterable[bytes]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    blocks = [block + _END for block in _read(file).split(_END)[:-1]]
    if not blocks:
        raise ConfigError(f"{file} holds no public key in PEM", MAKE_ONE)
    for block in blocks:
        try:
            key = load_pem_public_key(block.lstrip())
        except ValueError as error:
            raise ConfigError(f"{file} holds no public key in PEM ({error})", MAKE_ONE) from error
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError(f"{file} holds a key of another kind than Ed25519", MAKE_ONE)
        yield key.public_bytes_raw()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"the key {file} cannot be read ({error.strerror})", MAKE_ONE) from error
