"""Old checkpoints go, and of the shared files only those that no kept checkpoint names."""

import os
import time
from pathlib import Path

from deploy.local.prune import KEEP, SETTLED_S, prune_checkpoints


def put(file: Path, content: str, age_s: float) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    for path in (file, file.parent):
        os.utime(path, (time.time() - age_s,) * 2)
    return file


def test_the_newest_stay_with_all_they_name_and_the_rest_goes(tmp_path: Path) -> None:
    old = 10 * SETTLED_S
    for number in range(1, KEEP + 3):
        put(tmp_path / f"life-{number % 2}" / f"chk-{number}" / "_metadata", f"…/shared/file-{number}", old - number)
        put(tmp_path / f"life-{number % 2}" / "shared" / f"file-{number}", "", old)
    half = put(tmp_path / "life-1" / "chk-99" / "part", "", old)
    under_way = put(tmp_path / "life-1" / "chk-100" / "part", "", 1)
    fresh = put(tmp_path / "life-1" / "shared" / "of chk-100", "", 1)
    assert prune_checkpoints(tmp_path) == 3
    left = {file.parent.name for file in tmp_path.glob("*/chk-*/_metadata")}
    assert left == {f"chk-{number}" for number in range(3, KEEP + 3)}
    assert {file.name for file in tmp_path.glob("*/shared/file-*")} == {f"file-{n}" for n in range(3, KEEP + 3)}
    assert not half.exists() and under_way.exists() and fresh.exists()


def test_a_folder_that_is_not_there_is_no_trouble(tmp_path: Path) -> None:
    assert prune_checkpoints(tmp_path / "none") == 0
