"""Makes a finished release visible, all at once.

 1. build in a temporary folder beside the target (a leading dot: no reader takes it for a release);
 2. write the manifest with the digest of every file;
 3. sync the files and the folder, rename it to its version, sync the releases folder;
 4. (announce) send the message that names folder and manifest digest, and wait until Kafka has it.
A crash before the rename leaves nothing visible, a crash before the message an unannounced release
that `publish FOLDER` announces later. Which release is served is what was announced last.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

from schemas.errors import ModelRefused
from schemas.release import (
    FILES,
    ITEMS,
    MANIFEST,
    MODEL,
    OUTPUT_INDEX,
    Manifest,
    ModelRelease,
    check_file,
    digest_of,
    open_manifest,
)
from trainer.files import item_ids_in, sync

_BUILDING = ".building-"
_VERSION = "%Y%m%d-%H%M%S"
_EARLIEST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Release:
    """A release on disk: its folder, its manifest and the manifest's digest."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str

    @property
    def until_ms(self) -> int:
        """The model has learned from events before this moment; 0 when its manifest does not say."""
        return int(self.manifest.trained_on.get("until_ms", 0))

    def item_ids(self) -> list[str]:
        """Item ids in index order: the first has index 1."""
        return item_ids_in(self.folder)


def new_version(releases: Path) -> str:
    """A version after all that are there: the time now, UTC, to the second; one more where the clock is behind them."""
    now = datetime.now(UTC)
    newest = max((_time_of(folder.name) for folder in releases.glob("[!.]*")), default=_EARLIEST)
    return max(now, newest + timedelta(seconds=1)).strftime(_VERSION)


def _time_of(version: str) -> datetime:
    """The moment that a version is named after; the earliest one where people named it otherwise."""
    try:
        return datetime.strptime(version, _VERSION).replace(tzinfo=UTC)
    except ValueError:
        return _EARLIEST


def building_folder(releases: Path, version: str) -> Path:
    """An empty temporary folder for a release; what crashed cycles left behind is removed."""
    releases.mkdir(parents=True, exist_ok=True)
    for left in releases.glob(f"{_BUILDING}*"):
        shutil.rmtree(left)
    folder = releases / f"{_BUILDING}{version}"
    folder.mkdir()
    return folder


def seal(
    folder: Path,
    releases: Path,
    version: str,
    parent: str | None,
    metrics: Mapping[str, float],
    trained_on: Mapping[str, Any],
    receipt: Mapping[str, float] = MappingProxyType({}),
) -> Release:
    """Write the manifest of a built folder and let the release appear under its version."""
    count = (folder / ITEMS).read_bytes().count(b"\n")
    inputs, history, top_k = _interface(folder)
    manifest = Manifest(
        version=version,
        created_at=int(time.time() * 1000),
        parent=parent,
        history=history,
        top_k=top_k,
        item_count=count,
        inputs=inputs,
        files={name: digest_of((folder / name).read_bytes()) for name in FILES},
        metrics=dict(metrics),
        trained_on=dict(trained_on),
        receipt=dict(receipt),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for name in (*FILES, MANIFEST):
        sync(folder / name)
    sync(folder)
    folder.rename(releases / version)
    sync(releases)
    return verify(releases / version)


def _interface(folder: Path) -> tuple[list[str], int, int]:
    """Names of the graph's inputs, events of history it reads, length of its lists: asked of the graph itself."""
    import onnx  # a roll-back does not wait for it

    graph = onnx.load(folder / MODEL, load_external_data=False).graph
    shape = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    return [value.name for value in graph.input], shape["item_index"][1], shape[OUTPUT_INDEX][1]


def verify(folder: Path) -> Release:
    """The release in a folder, every digest checked. Raises ModelRefused."""
    file = folder / MANIFEST
    if not file.is_file():
        raise ModelRefused(f"{folder} holds no {MANIFEST}", "name a release folder (see show)")
    content = file.read_bytes()
    sha256 = digest_of(content).sha256
    manifest = open_manifest(content, ModelRelease(folder.name, "", sha256, 0))
    for name in FILES:
        path = folder / name
        check_file(manifest, name, path.read_bytes() if path.is_file() else b"")
    return Release(folder, manifest, sha256)


def release_folders(releases: Path) -> list[Path]:
    """The folders of all visible releases, oldest first."""
    return sorted(path.parent for path in releases.glob(f"[!.]*/{MANIFEST}"))
