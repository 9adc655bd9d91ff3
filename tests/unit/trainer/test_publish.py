import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnxruntime
import pytest
from rich.console import Console

from schemas.errors import ConfigError, ModelRefused
from schemas.release import ModelRelease
from tests.unit.trainer.conftest import ITEM_IDS
from trainer import publish as module
from trainer.__main__ import TABLE_WIDTH
from trainer.config import Plan, Settings, plan
from trainer.files import only_one, write_whole
from trainer.publish import Release, building_folder, new_version, release_folders, verify
from trainer.show import overview
from trainer.verdicts import on_record, verdicts

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
    graph = onnxruntime.InferenceSession(release.folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert manifest["inputs"] == [value.name for value in graph.get_inputs()]
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


def test_a_version_comes_after_all_that_a_clock_ahead_has_named(tmp_path: Path) -> None:
    """Versions are compared: the newest stay on disk, and the one that serves is shown as the last."""
    (tmp_path / "20991231-235959").mkdir()
    (tmp_path / "named-by-hand").mkdir()
    assert new_version(tmp_path) == "21000101-000000"


# ── show ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    return plan(Settings(trainer={"data": tmp_path / "data", "releases": tmp_path / "releases"}))


def shown(planned: Plan, *versions: str) -> str:
    console = Console(width=TABLE_WIDTH)
    with console.capture() as capture:
        console.print(overview(planned, [ModelRelease(version, "", "", 0) for version in versions]))
    return capture.get()


def line_of(word: str, text: str) -> str:
    [line] = [line for line in text.splitlines() if word in line]
    return line


def test_show_says_which_release_is_announced_last(make_release: MakeRelease, planned: Plan) -> None:
    for version in ("20260101-000000", "20260101-000001", "20260101-000002", "20260101-000003"):
        make_release(version)
    (planned.releases / "20260101-000002" / "items").write_text("")
    text = shown(planned, "20260101-000001", "20260101-000000")
    assert "full, now" in line_of("20260101-000000", text)
    assert "full, before" in line_of("20260101-000001", text)
    assert "damaged: items" in line_of("20260101-000002", text)
    assert "never" in line_of("20260101-000003", text)
    assert "0.5000 / 0.6000" in line_of("20260101-000000", text)
    assert "receipts" not in text and "not published" not in text


def test_show_lists_receipts(make_release: MakeRelease, planned: Plan) -> None:
    latencies = {
        f"p50_ms_{batch}_{when}": ms + batch / 10
        for when, ms in (("before", 50), ("after", 20))
        for batch in (1, 64, 1024)
    }
    sizes = {"parameters_before": 8e6, "parameters_after": 2e6, "bytes_before": 2**25, "bytes_after": 2**22}
    quality = {"ndcg_change": -0.0042, "top10_overlap": 0.963, "optimisation_ratio": 5.5}
    make_release("20260101-000000", receipt={**sizes, **quality, **latencies})
    make_release("20260101-000001")
    text = shown(planned).partition("receipts")[2]
    assert "20260101-000001" not in text
    row = line_of("20260101-000000", text)
    for word in (
        "8.00M → 2.00M (4.0×)", "32.00 → 4.00 (8.0×)", "-0.42%", "96.3%", "5.50",
        "50.1 → 20.1", "56.4 → 26.4", "152.4 → 122.4",
    ):  # fmt: skip
        assert word in row


def refused(data: Path, version: str, parent: str) -> None:
    """The gate refuses a candidate."""
    with suppress(ModelRefused), on_record(data, version, parent) as metrics:
        metrics["ndcg"], metrics["served_ndcg"] = 0.1234, 0.2345
        raise ModelRefused("it is worse by 0.1111", "the served model stays")


def test_show_lists_what_was_refused_and_why(make_release: MakeRelease, planned: Plan) -> None:
    make_release("20260101-000000")
    with on_record(planned.data, "20260101-000000", None):
        pass
    refused(planned.data, "20260101-000001", "20260101-000000")
    with on_record(planned.data, "20260101-000002", "20260101-000000"):  # and then somebody pulled the plug
        pass
    text = shown(planned).partition("not published")[2]
    assert "20260101-000000" not in text.splitlines()[3][:30]
    row = line_of("20260101-000001", text)
    assert "0.1234" in row and "0.2345" in row and "it is worse by 0.1111" in row
    assert "accepted, but" in line_of("20260101-000002", text)


def test_a_verdict_that_a_crash_cut_short_spoils_no_other(tmp_path: Path) -> None:
    for version in ("a", "b"):
        with on_record(tmp_path, version, None) as metrics:
            metrics["ndcg"] = 0.5
    file = tmp_path / "verdicts.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    with on_record(tmp_path, "c", None):
        pass
    assert [verdict.version for verdict in verdicts(tmp_path)] == ["a", "c"]


def test_what_ends_a_cycle_otherwise_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), on_record(tmp_path, "a", None):
        raise KeyboardInterrupt
    assert verdicts(tmp_path) == []


def test_a_manifest_without_a_receipt_is_read(make_release: MakeRelease) -> None:
    folder = make_release("20260101-000000").folder
    content = json.loads((folder / "manifest.json").read_text())
    del content["receipt"]  # as written before there were any
    (folder / "manifest.json").write_text(json.dumps(content))
    assert verify(folder).manifest.receipt == {}


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
