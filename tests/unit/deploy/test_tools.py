"""What the machine lacks is said in one line, before anything starts."""

import shutil
from pathlib import Path

import pytest

from deploy.local import tools
from schemas.errors import UnreachableError


def fake(folder: Path, name: str, script: str) -> Path:
    """An executable that does what the script says."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(("said", "found"), [("1.8.0_392", "8"), ("11.0.22", "11"), ("21.0.2", "21")])
def test_another_java_than_17_is_refused(
    said: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", "java", f"echo 'openjdk version \"{said}\" 2024-01-16' >&2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UnreachableError, match=rf"Java {found} was found.*install a JDK 17"):
        tools.java()


def test_no_java_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UnreachableError, match=r"Java does not run.*install a JDK 17"):
        tools.java()


def test_java_17_is_taken_from_java_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = fake(tmp_path / "bin", "java", "echo 'openjdk version \"17.0.9\"' >&2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert tools.java() == str(program)


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, tools.FREE_DISK - 1))
    with pytest.raises(UnreachableError, match=r"only 3\.0 GiB are free.*--state"):
        tools.require_disk(tmp_path)


def test_no_maven_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnreachableError, match=r"Maven.*was not found; install Maven"):
        tools.jars("flink", tmp_path / "jars")


def test_maven_that_fails_leaves_nothing_behind_and_says_its_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", "mvn", "echo '[ERROR] no such repository'; echo '[ERROR] more'; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    with pytest.raises(UnreachableError, match=r"jars of flink: .ERROR. no such repository"):
        tools.jars("flink", tmp_path / "jars")
    assert [path.name for path in (tmp_path / "jars").iterdir()] == [".lock"]


def test_jars_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(
        tmp_path / "bin",
        "mvn",
        f"echo call >> {tmp_path}/calls\n"
        'for word; do case $word in -DoutputDirectory=*) mkdir "${word#*=}";; esac; done',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    first = tools.jars("flink", tmp_path / "jars")
    assert first == tools.jars("flink", tmp_path / "jars")
    assert (tmp_path / "calls").read_text() == "call\n"
