"""What the job is told about releases: publish, promote, roll back. Each is a new message on `model-releases`.

Where trainer.signing_key is set every message is signed, with a sequence number above all before: a roll-back names an
old release in a new message, which is how the job tells it from an old message that somebody sent again.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from schemas import topics
from schemas.avro import BadRecord
from schemas.errors import ConfigError, ContractError, ModelRefused
from schemas.release import MANIFEST, ModelRelease, Stage, decode_release, encode_release, open_manifest
from schemas.roll_back import RollBack, Standing, decode_roll_back, standing
from schemas.signing import Trust, public_bytes, read_private_key, read_trust, sign
from trainer.broker import reader, send
from trainer.config import DAY_MS, Settings
from trainer.progress import say
from trainer.publish import Release, release_folders, verify


class Told(NamedTuple):
    """What the topics say.

    releases: every message that counts, oldest first. rolled_back: what the job took out of service by itself, by the
    digest of its manifest.
    """

    releases: list[ModelRelease]
    rolled_back: dict[str, RollBack]

    @property
    def standing(self) -> Standing:
        """What serves, and what is on trial beside it."""
        return standing(self.releases, self.rolled_back)

    def then(self, message: ModelRelease) -> Told:
        """The same after one more message."""
        return self._replace(releases=[*self.releases, message])


def told(settings: Settings) -> Told:
    """What the job was told until now, and said. Raises UnreachableError, ConfigError."""
    trust, topic = trust_of(settings), settings.topic(topics.MODEL_RELEASES)
    with reader(settings) as source:
        releases = [decode_release(message.value()) for message in source.read_all(topic)]
        back = [decode_roll_back(message.value()) for message in source.read_all(settings.topic(topics.ROLL_BACKS))]
    return Told(
        [r for r in releases if not isinstance(r, BadRecord) and trust.refusal(r, topic) is None],
        {r.manifest_sha256: r for r in back if not isinstance(r, BadRecord)},
    )


def announce(
    settings: Settings, before: Told, release: Release, stage: Stage = "full", percent: int = 100
) -> ModelRelease:
    """Tell the job whom a release shall serve. Raises UnreachableError when Kafka did not take it.

    before: as just read; what is announced meanwhile would have the same sequence number.

    Raises ModelRefused when the job has rolled it back before, ConfigError when the key cannot be used.
    """
    if bad := before.rolled_back.get(release.manifest_sha256):
        raise ModelRefused(
            f"the job has rolled release {release.manifest.version} back ({bad.reason})", "publish another one"
        )
    message = ModelRelease(
        version=release.manifest.version,
        uri=release.folder.absolute().as_uri(),
        manifest_sha256=release.manifest_sha256,
        published_at=int(time.time() * 1000),
        stage=stage,
        percent=percent,
    )
    topic = settings.topic(topics.MODEL_RELEASES)
    if settings.trainer.signing_key is not None:
        message = _signed(settings, before, message, topic)
    offset = send(settings, topic, message.version.encode(), encode_release(message))
    whom = {"shadow": "in shadow", "canary": f"for {percent} % of the users", "full": "for everybody"}[stage]
    say(f"announced release {message.version} {whom} on {topic} (offset {offset})")
    return message


def _signed(settings: Settings, before: Told, message: ModelRelease, topic: str) -> ModelRelease:
    section = settings.trainer
    assert section.signing_key is not None
    last = max((each.sequence for each in before.releases), default=0)
    numbered = replace(message, sequence=last + 1, expires_at=message.published_at + section.valid_days * DAY_MS)
    return sign(numbered, topic, read_private_key(section.signing_key))


def trust_of(settings: Settings) -> Trust:
    """Whose messages count: those of release_keys, else the signing key's own. Raises ConfigError."""
    key = settings.trainer.signing_key
    trust = read_trust(settings.release_keys)
    if key is None:
        return trust
    own = public_bytes(read_private_key(key))
    if trust.keys and own not in trust.keys:
        raise ConfigError(
            f"trainer.signing_key = {key} belongs to none of the keys in release_keys = {settings.release_keys}",
            "the job would refuse what it signs: add its public key, or name another",
        )
    return trust if trust.keys else Trust((own,))


def served(settings: Settings) -> Release | None:
    """The release that was announced last to serve everybody, and still does; None before the first.

    None too, and a line that says so, when its files are missing or damaged: then the job cannot
    load it either, and a fit from nothing is the way out. Raises UnreachableError.
    """
    message = told(settings).standing.full
    if message is None:
        return None
    try:
        return opened(message)
    except ModelRefused as reason:
        say(f"the served release {message.version} is not used: {reason}")
        return None


def opened(message: ModelRelease) -> Release:
    """The release that a message names, checked. Raises ModelRefused."""
    release = verify(folder_of(message))
    open_manifest((release.folder / MANIFEST).read_bytes(), message)
    return release


def folder_of(message: ModelRelease) -> Path:
    """Where a message says that its release lies."""
    return Path(unquote(urlparse(message.uri).path))


def promote(settings: Settings, stage: Stage = "full", percent: int = 100) -> ModelRelease:
    """Let what is on trial serve more users, by default all. Raises ContractError when nothing is."""
    before = told(settings)
    trial = before.standing.trial
    if trial is None:
        raise ContractError(
            "no release is in shadow or canary", "publish one with --stage; show says what was rolled back"
        )
    return announce(settings, before, opened(trial), stage, percent)


def roll_back(settings: Settings, releases: Path, version: str | None) -> ModelRelease:
    """Announce a former release to everybody.

    The given one; else what serves beside a trial, which ends the trial; else the parent of what serves.

    Raises ContractError when there is none, ModelRefused when its files are damaged.
    """
    before = told(settings)
    if version is None:
        full, trial = before.standing
        if full is None:
            raise ContractError("no release was ever announced", "run a cycle first")
        version = full.version if trial is not None else parent_of(full)
        if version is None:
            raise ContractError(f"release {full.version} has no parent to roll back to", "name a version (see show)")
    known = [folder.name for folder in release_folders(releases)]
    if version not in known:
        raise ContractError(f"there is no release {version} in {releases}", f"known: {', '.join(known) or 'none'}")
    return announce(settings, before, verify(releases / version))


def parent_of(message: ModelRelease) -> str | None:
    """The parent of an announced release, whose other files may be damaged: all the more reason to leave it.

    Raises ContractError where its manifest does not say.
    """
    try:
        return open_manifest((folder_of(message) / MANIFEST).read_bytes(), message).parent
    except (OSError, ModelRefused) as problem:
        raise ContractError(
            f"the manifest of release {message.version} does not say what came before it ({problem})",
            "name a version (see show)",
        ) from problem
