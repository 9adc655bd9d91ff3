"""Only what a trusted key has signed counts, for the topic it was signed for, and only until it is stale."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from schemas.errors import ConfigError
from schemas.release import ModelRelease, decode_release, encode_release
from schemas.signing import SIGNED, Trust, make_key, public_bytes, read_private_key, read_trust, sign, stale

KEY = Ed25519PrivateKey.generate()
TRUST = Trust((public_bytes(KEY),))
TOPIC = "model-releases"
RELEASE = ModelRelease("20260101-000000", "file:///r/20260101-000000", "ab" * 32, 1000, sequence=3, expires_at=5000)


def test_what_the_key_has_signed_counts_after_its_way_through_kafka() -> None:
    arrived = decode_release(encode_release(sign(RELEASE, TOPIC, KEY)))
    assert isinstance(arrived, ModelRelease)
    assert TRUST.refusal(arrived, TOPIC) is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": "20260101-000001"},
        {"uri": "file:///tmp/evil"},
        {"manifest_sha256": "cd" * 32},
        {"stage": "canary"},
        {"percent": 99},
        {"published_at": 1001},
        {"sequence": 4},
        {"expires_at": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_field_of_a_signed_message_can_be_altered(change: dict[str, Any]) -> None:
    refusal = TRUST.refusal(replace(sign(RELEASE, TOPIC, KEY), **change), TOPIC)
    assert refusal is not None and refusal.reason == "release-signature"


def test_every_field_but_the_signature_is_signed() -> None:
    assert {*SIGNED, "signature"} == set(vars(RELEASE))


def test_a_message_cannot_be_moved_to_the_topic_of_another_tenant() -> None:
    refusal = TRUST.refusal(sign(RELEASE, "shop1.model-releases", KEY), "shop2.model-releases")
    assert refusal is not None and refusal.reason == "release-signature"


@pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"\xff" * 63, b"x" * 4000])
def test_what_is_no_signature_is_none(signature: bytes) -> None:
    refusal = TRUST.refusal(replace(RELEASE, signature=signature), TOPIC)
    assert refusal is not None and refusal.reason == "release-signature"


def test_another_key_is_not_trusted_and_one_of_several_is() -> None:
    other = Ed25519PrivateKey.generate()
    refusal = TRUST.refusal(sign(RELEASE, TOPIC, other), TOPIC)
    assert refusal is not None and "none of the 1 configured keys" in refusal.detail
    assert Trust((*TRUST.keys, public_bytes(other))).refusal(sign(RELEASE, TOPIC, other), TOPIC) is None


def test_unsigned_messages_count_only_where_no_key_is_configured() -> None:
    refusal = TRUST.refusal(RELEASE, TOPIC)
    assert refusal is not None and refusal.reason == "release-unsigned"
    assert Trust().refusal(RELEASE, TOPIC) is None


@pytest.mark.parametrize(
    ("last", "now", "reason"),
    [(2, 4999, None), (3, 0, "release-sequence"), (9, 0, "release-sequence"), (2, 5000, "release-expired")],
)
def test_a_message_is_stale_when_one_as_new_was_taken_or_its_time_is_over(
    last: int, now: int, reason: str | None
) -> None:
    refusal = stale(RELEASE, last, now)
    assert (refusal.reason if refusal else None) == reason
    assert stale(replace(RELEASE, expires_at=0), 2, 10**15) is None


# ── keys in files ────────────────────────────────────────────────────────────────────────────────


def test_a_key_that_was_made_signs_what_its_public_half_verifies(tmp_path: Path) -> None:
    public = make_key(tmp_path / "keys" / "release.key")
    assert (tmp_path / "keys" / "release.key").stat().st_mode & 0o777 == 0o600
    signed = sign(RELEASE, TOPIC, read_private_key(tmp_path / "keys" / "release.key"))
    for path in (public, tmp_path / "keys"):
        assert read_trust(path).refusal(signed, TOPIC) is None


def test_a_file_may_hold_several_keys_and_so_may_a_folder(tmp_path: Path) -> None:
    first, second = make_key(tmp_path / "a"), make_key(tmp_path / "b")
    both = tmp_path / "both.pem"
    both.write_bytes(b"# the old one\n" + first.read_bytes() + b"\n# the new one\n" + second.read_bytes())
    assert read_trust(both) == read_trust(tmp_path)
    assert len(read_trust(both).keys) == 2


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    make_key(tmp_path / "k")
    before = (tmp_path / "k").read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        make_key(tmp_path / "k")
    assert (tmp_path / "k").read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_private_key_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    make_key(tmp_path / "k")
    (tmp_path / "k").chmod(mode)
    with pytest.raises(ConfigError, match=r"others than its owner may read .*; chmod 600"):
        read_private_key(tmp_path / "k")


def test_what_is_no_key_is_named(tmp_path: Path) -> None:
    ec = generate_private_key(SECP256R1())
    (tmp_path / "ec.pub").write_bytes(ec.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    (tmp_path / "ec").write_bytes(ec.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "locked").write_bytes(
        KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    )
    (tmp_path / "text").write_text("no key")
    for name in ("ec", "locked", "text"):
        (tmp_path / name).chmod(0o600)
    for name, cause in (("ec", "another kind"), ("locked", "no private key"), ("text", "no private key")):
        with pytest.raises(ConfigError, match=cause):
            read_private_key(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_private_key(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for name, cause in (
        ("ec.pub", "another kind"),
        ("text", "no public key"),
        ("nowhere", "cannot be read"),
        ("empty", "no public key"),
    ):
        with pytest.raises(ConfigError, match=cause):
            read_trust(tmp_path / name)
