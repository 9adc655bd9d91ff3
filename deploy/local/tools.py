"""What the machine must have: Java 17, Maven, disk; and the servers' jars, fetched once."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from schemas.errors import UnreachableError

# Cassandra 5.0 runs on nothing newer, Kafka 4 on nothing older.
JAVA = 17
# Jars 0.25 GiB, Kafka's and Cassandra's logs and the checkpoints of a demo below 1 GiB, and some
# air.
FREE_DISK = 3 * 1024**3
HERE = Path(__file__).parent


def java() -> str:
    """The java program of JAVA_HOME, else of PATH. Raises UnreachableError unless it is Java 17."""
    home = os.environ.get("JAVA_HOME")
    program = str(Path(home) / "bin" / "java") if home else "java"
    remedy = f"install a JDK {JAVA} and let JAVA_HOME name its folder"
    try:
        said = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnreachableError(f"Java does not run ({program})", remedy) from error
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    if found is None or int(found[1]) != JAVA:
        raise UnreachableError(f"Java {found[1] if found else 'of unknown version'} was found ({program})", remedy)
    return program


def require_disk(folder: Path) -> None:
    """Raises UnreachableError when less than 3 GiB are free where the state folder lies."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < FREE_DISK:
        raise UnreachableError(
            f"only {free / 1024**3:.1f} GiB are free in {folder}",
            "free at least 3 GiB, or choose another folder with --state",
        )


def jars(server: str, cache: Path) -> Path:
    """The folder of a server's jars, `cache/SERVER-DIGEST`; fetched when the pom is new.

    Raises UnreachableError when Maven is missing or cannot fetch them.
    """
    folder = _folder(server, cache)
    if folder.is_dir():
        return folder
    if shutil.which("mvn") is None:
        raise UnreachableError("Maven (mvn) was not found", "install Maven 3.8 or newer")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stacks may start at the same moment
        if folder.is_dir():
            return folder
        part = cache / f"{folder.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        command = ["mvn", "-B", "-q", "-f", str(_pom(server)), "dependency:copy-dependencies"]
        command += ["-DincludeScope=runtime", f"-DoutputDirectory={part}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0 or not part.is_dir():
            errors = [line for line in done.stdout.splitlines() if "ERROR" in line] or ["no message"]
            raise UnreachableError(
                f"Maven could not fetch the jars of {server}: {errors[0][:300]}",
                "see that this machine reaches a Maven repository, then try again",
            )
        part.rename(folder)
    return folder


def fetched(server: str, cache: Path) -> bool:
    """Whether `jars` has nothing left to fetch."""
    return _folder(server, cache).is_dir()


def _pom(server: str) -> Path:
    return HERE / server / "pom.xml"


def _folder(server: str, cache: Path) -> Path:
    digest = hashlib.sha256(_pom(server).read_bytes()).hexdigest()[:12]
    return cache / f"{server}-{digest}"
