import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from schemas.errors import ConfigError, ModelRefused
from schemas.release import ModelRelease
from tests.unit.trainer.conftest import ITEM_IDS
from trainer import publish as module
from trainer.files import only_one, write_whole
from trainer.publish import (
    Release,
    building_folder,
    folder_of,
    new_version,
    release_folders,
    verify,
)
from trainer.show import releases_table

pytestmark = pytest.mark.filterwarnings("ignore")
MakeRelease = Callable[..., Release]


def test_a_sealed_release_holds_what_its_manifest_promises(make_release: MakeRelease) -> None:
    release = make_release("20260101-000000", parent="20251231-000000")
    assert sorted(path.name for path in release.folder.iterdir()) == [
        "items", "manifest.json", "model.onnx", "warmup",
    ]  # fmt: skip
    manifest = json.loads((release.folder / "manifest.json").read_text())
    assert manifest["version"] == release.folder.name == "20260101-000000"
    assert manifest["parent"] == "20251231-000000"
    assert (manifest["history"], manifest["top_k"], manifest["item_count"]) == (50, 50, 80)
    assert manifest["inputs"] == ["item_index", "action", "gap", "available"]
    assert release.item_ids() == ITEM_IDS


@pytest.mark.parametrize("step", ["manifest", "sync", "rename"])
def test_a_crash_before_the_rename_leaves_no_visible_release(
    make_release: MakeRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if step == "manifest":
            patched.setattr(module, "Manifest", crash)
        elif step == "sync":
            patched.setattr(module, "sync", crash)
        else:
            patched.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            make_release("20260101-000000")
    releases = tmp_path / "releases"
    assert release_folders(releases) == []
    assert all(path.name.startswith(".") for path in releases.iterdir())
    make_release("20260101-000001")  # what the crash left is cleaned away
    assert [path.name for path in releases.iterdir()] == ["20260101-000001"]


def test_every_file_is_on_disk_before_the_release_is_visible(
    make_release: MakeRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    rename, fsync = Path.rename, os.fsync

    def renamed(self: Path, target: Path) -> Path:
        order.append("rename")
        return rename(self, target)

    def synced(handle: int) -> None:
        order.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        fsync(handle)

    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    make_release("20260101-000000")
    files = ["model.onnx", "items", "warmup", "manifest.json"]
    assert order == [*files, ".building-20260101-000000", "rename", "releases"]


@pytest.mark.parametrize("name", ["model.onnx", "items", "warmup"])
def test_a_changed_byte_is_refused(make_release: MakeRelease, name: str) -> None:
    folder = make_release("20260101-000000").folder
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ModelRefused, match=f"{name} of release .* has a wrong digest"):
        verify(folder)


@pytest.mark.parametrize("name", ["model.onnx", "items", "warmup"])
def test_a_truncated_or_missing_file_is_refused(make_release: MakeRelease, name: str) -> None:
    folder = make_release("20260101-000000").folder
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(ModelRefused, match="promised were"):
        verify(folder)
    (folder / name).unlink()
    with pytest.raises(ModelRefused, match="has 0 bytes"):
        verify(folder)


def test_a_release_under_another_name_is_refused(make_release: MakeRelease) -> None:
    folder = make_release("20260101-000000").folder
    other = folder.rename(folder.with_name("20260101-000009"))
    with pytest.raises(ModelRefused, match="holds 20260101-000000"):
        verify(other)
    with pytest.raises(ModelRefused, match="holds no manifest"):
        verify(folder)


def test_a_version_is_the_time_and_never_taken_twice(tmp_path: Path) -> None:
    first = new_version(tmp_path)
    assert len(first) == len("20260101-000000")
    building_folder(tmp_path, first).rename(tmp_path / first)
    assert new_version(tmp_path) > first


def test_a_message_names_its_folder_even_with_odd_letters(tmp_path: Path) -> None:
    folder = tmp_path / "größe 1%20"
    assert folder_of(ModelRelease("v", folder.as_uri(), "", 0)) == folder


def test_show_says_which_release_is_announced_last(make_release: MakeRelease, tmp_path: Path) -> None:
    for version in ("20260101-000000", "20260101-000001", "20260101-000002"):
        make_release(version)
    (tmp_path / "releases" / "20260101-000002" / "items").write_text("")
    messages = [ModelRelease(v, "", "", 0) for v in ("20260101-000001", "20260101-000000")]
    table = releases_table(tmp_path / "releases", messages)
    announced = list(table.columns[-1].cells)
    assert announced[:2] == ["[bold]full, now[/]", "full, before"]
    assert str(announced[2]).startswith("damaged: items")
    assert list(table.columns[5].cells)[:2] == ["0.5000 / 0.6000"] * 2


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "offsets.json"
    write_whole(target, lambda path: path.write_text("old"))

    def half(path: Path) -> None:
        path.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(target, half)
    assert target.read_text() == "old"


def test_two_trainers_never_share_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match="another trainer works in")
    with only_one(tmp_path), refused, only_one(tmp_path):
        pass
    with only_one(tmp_path):  # free again
        pass
