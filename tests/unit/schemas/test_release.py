"""A folder is what its manifest says and its manifest what was announced, or it is refused."""

import json
from typing import Any

import pytest

from schemas.errors import ConfigError, ContractError, FreshrecError, ModelRefused, UnreachableError
from schemas.release import FileDigest, Manifest, ModelRelease, check_file, digest_of, open_manifest

FIELDS: dict[str, Any] = {
    "version": "20260101-000000",
    "created_at": 1,
    "parent": None,
    "history": 50,
    "top_k": 50,
    "item_count": 3,
    "inputs": ["item_index", "available"],
    "files": {"items": {"sha256": digest_of(b"a\nb\nc\n").sha256, "size": 6}},
    "metrics": {"recall": 0.5},
    "trained_on": {"events": 10},
}


def announced(content: bytes, version: str = "20260101-000000") -> ModelRelease:
    return ModelRelease(version, "file:///nowhere", digest_of(content).sha256, 1)


def test_the_announced_manifest_is_opened() -> None:
    raw = json.dumps(FIELDS).encode()
    manifest = open_manifest(raw, announced(raw))
    assert manifest == Manifest(**FIELDS)
    assert manifest.files["items"] == FileDigest(sha256=digest_of(b"a\nb\nc\n").sha256, size=6)


def test_a_digest_is_sha256_in_lower_case_hex() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_of(b"") == FileDigest(sha256=empty, size=0)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"not json", "is not a manifest"),
        (b"\xff\xfe", "is not a manifest"),
        (b"[]", "is not a manifest"),
        (json.dumps({**FIELDS, "colour": "red"}).encode(), "is not a manifest"),
        (
            json.dumps({k: v for k, v in FIELDS.items() if k != "files"}).encode(),
            "is not a manifest",
        ),
        (json.dumps({**FIELDS, "item_count": "many"}).encode(), "is not a manifest"),
        (json.dumps({**FIELDS, "version": "20250101-000000"}).encode(), "holds 20250101-000000"),
    ],
)
def test_a_manifest_of_another_shape_or_version_is_refused(content: bytes, cause: str) -> None:
    with pytest.raises(ModelRefused, match=cause) as refused:
        open_manifest(content, announced(content))
    assert "20260101-000000" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_manifest_that_was_not_announced_is_refused() -> None:
    raw = json.dumps(FIELDS).encode()
    with pytest.raises(ModelRefused, match=r"manifest\.json of release 20260101-000000 has digest"):
        open_manifest(raw + b" ", announced(raw))


def test_a_file_must_be_the_one_of_the_manifest() -> None:
    manifest = Manifest(**FIELDS)
    check_file(manifest, "items", b"a\nb\nc\n")
    with pytest.raises(ModelRefused, match="items of release 20260101-000000 has 5 bytes, promised were 6"):
        check_file(manifest, "items", b"a\nb\nc")
    with pytest.raises(ModelRefused, match="items of release 20260101-000000 has a wrong digest"):
        check_file(manifest, "items", b"a\nb\nx\n")
    with pytest.raises(ModelRefused, match=r"has no model\.onnx"):
        check_file(manifest, "model.onnx", b"")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (FreshrecError, 1),
        (ConfigError, 2),
        (ContractError, 3),
        (UnreachableError, 4),
        (ModelRefused, 5),
    ],
)
def test_an_error_is_one_line_with_cause_and_remedy_and_its_own_exit_code(kind: type[FreshrecError], code: int) -> None:
    error = kind("the port is taken", "choose another")
    assert str(error) == "the port is taken; choose another"
    assert (error.cause, error.remedy, error.exit_code) == (
        "the port is taken",
        "choose another",
        code,
    )
