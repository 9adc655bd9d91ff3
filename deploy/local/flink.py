"""Flink: one JobManager, which runs the job, and TaskManagers of one slot each.

Flink itself comes with the apache-flink package and is not touched: its scripts take their folders
from the environment, and `STATE/flink/lib` is a folder of links to its jars, the Kafka connector
and flink-python. The last one belongs there: loaded per job instead, a second start of Python in
the same JVM fails.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import tools
from deploy.local.config import REPOSITORY
from deploy.local.flink_rest import FlinkRest
from deploy.local.ports import HOST, Ports
from deploy.local.process import Process
from deploy.local.reach import without_logins
from deploy.local.secure import Keys
from deploy.local.server import HERE, Server, render
from schemas.errors import UnreachableError

CONFIGS = HERE / "flink"
# Prometheus' reporter listens on all interfaces and has no setting for one: it is on only where it
# is asked for.
METRICS = "-Dmetrics.reporter.prom.factory.class=org.apache.flink.metrics.prometheus.PrometheusReporterFactory"
# A job that has failed as often as this before it ever ran will not heal by waiting.
HOPELESS = 5
PYTHON_DRIVER = "org.apache.flink.client.python.PythonDriver"


@dataclass(frozen=True)
class Job:
    """What the cluster runs: an entry file, its arguments, and additions to the environment."""

    entry: str
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """Folders and environment that JobManager and TaskManagers share."""

    state: Path
    jars: Path
    ports: Ports
    parallelism: int
    metrics: bool
    checkpoint_s: int
    job: Job
    keys: Keys | None

    @property
    def folder(self) -> Path:
        return self.state / "flink"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def rest(self) -> FlinkRest:
        if self.keys is None:
            return FlinkRest(f"http://{HOST}:{self.ports.flink_rest}")
        return FlinkRest(f"https://{HOST}:{self.ports.flink_rest}", self.keys.client_context())

    def prepare(self) -> dict[str, str]:
        """Write configuration and links; returns the environment of a process."""
        home = flink_home()
        conf, lib = self.folder / "conf", self.folder / "lib"
        render(
            CONFIGS / "config.yaml",
            conf / "config.yaml",
            CONFIGS / "secure.yaml" if self.keys else None,
            rpc_port=self.ports.flink_rpc,
            blob_port=self.ports.flink_blobs,
            rest_port=self.ports.flink_rest,
            parallelism=self.parallelism,
            checkpoint_interval=f"{self.checkpoint_s} s",
            checkpoints=self.checkpoints.as_uri(),
            savepoints=(self.folder / "savepoints").as_uri(),
            tmp=self.folder / "tmp",
            **({"keys": self.keys.folder, "password": self.keys.keystore_password} if self.keys else {}),
        )
        # Its ${…} are log4j's own, hence no template.
        shutil.copy(CONFIGS / "log4j-console.properties", conf)
        lib.mkdir(parents=True, exist_ok=True)
        connector = tools.jars("flink", self.jars)
        wanted = [
            *(home / "lib").glob("*.jar"),
            *(home / "opt").glob("flink-python-*.jar"),
            *connector.glob("*.jar"),
        ]
        for stale in {link.name for link in lib.iterdir()} - {jar.name for jar in wanted}:
            (lib / stale).unlink()
        for jar in wanted:
            link = lib / jar.name
            if not link.is_symlink() or link.readlink() != jar:
                link.unlink(missing_ok=True)
                link.symlink_to(jar)
        for name in ("tmp", "log"):
            (self.folder / name).mkdir(exist_ok=True)
        given = {**without_logins(os.environ), **self.job.env}
        python_path = [str(REPOSITORY), *filter(None, [given.get("PYTHONPATH")])]
        # The environment's own folder, not what its link points at: pemja asks the first `python`
        # in PATH.
        scripts = Path(sys.executable).parent
        return {
            **given,
            "PATH": f"{scripts}{os.pathsep}{given.get('PATH', '')}",
            "PYTHONPATH": os.pathsep.join(python_path),
            "FLINK_CONF_DIR": str(conf),
            "FLINK_LIB_DIR": str(lib),
            "FLINK_PLUGINS_DIR": str(home / "plugins"),
            "FLINK_LOG_DIR": str(self.folder / "log"),
            "FLINK_PID_DIR": str(self.folder / "pid"),
        }


class JobManager(Server):
    """The JobManager and in it the job: ends when the job ends, starts from a checkpoint."""

    name = "jobmanager"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.process = Process(self.name, cluster.state)

    def ports(self) -> Mapping[str, int]:
        ports = self._cluster.ports
        wanted = {
            "Flink's page": ports.flink_rest,
            "Flink's RPC": ports.flink_rpc,
            "Flink's files": ports.flink_blobs,
        }
        return wanted | ({"JobManager's metrics": ports.jobmanager_metrics} if self._cluster.metrics else {})

    def start(self) -> None:
        cluster = self._cluster
        environment = cluster.prepare()
        argv = [str(flink_home() / "bin" / "standalone-job.sh"), "start-foreground"]
        if cluster.metrics:
            argv += [METRICS, f"-Dmetrics.reporter.prom.port={cluster.ports.jobmanager_metrics}"]
        argv += ["--job-classname", PYTHON_DRIVER]
        if (checkpoint := newest_checkpoint(cluster.checkpoints)) is not None:
            argv += ["--fromSavepoint", checkpoint.as_uri()]
        # From here on the words are the job's.
        argv += [
            "-pyexec",
            sys.executable,
            "-pyclientexec",
            sys.executable,
            "-py",
            cluster.job.entry,
        ]
        self.process.start([*argv, *cluster.job.args], environment)

    def doomed(self) -> bool:
        if super().doomed():
            return True
        try:
            return any(self._cluster.rest.restarts(job.id) >= HOPELESS for job in self._cluster.rest.jobs())
        except UnreachableError:
            return False  # it may still be starting

    def trouble(self) -> str | None:
        try:
            jobs = self._cluster.rest.jobs()
            if not jobs:
                return "it has no job yet"
            job = jobs[-1]
            if job.running:
                return None
            reason = self._cluster.rest.failure(job.id)
            return f"the job is {job.state}, {job.tasks_running} of {job.tasks} tasks run" + (
                f": {reason}" if reason else ""
            )
        except UnreachableError as error:
            return str(error)


class TaskManager(Server):
    """One worker, `number` = 1, 2, …: a slot, and in it the job's Python."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self._cluster = cluster
        self._number = number
        self.name = f"taskmanager-{number}"
        self.process = Process(self.name, cluster.state)
        self._manager = Process(JobManager.name, cluster.state)

    def ports(self) -> Mapping[str, int]:
        if not self._cluster.metrics:
            return {}
        return {f"TaskManager {self._number}'s metrics": self._cluster.ports.taskmanager_metrics(self._number)}

    def start(self) -> None:
        argv = [str(flink_home() / "bin" / "taskmanager.sh"), "start-foreground"]
        # Under its old name a new TaskManager takes the place of the dead one before any heartbeat
        # is missed.
        argv += [f"-Dtaskmanager.resource-id={self.name}"]
        if self._cluster.metrics:
            argv += [
                METRICS,
                f"-Dmetrics.reporter.prom.port={self._cluster.ports.taskmanager_metrics(self._number)}",
            ]
        self.process.start(argv, self._cluster.prepare())

    def doomed(self) -> bool:
        return super().doomed() or self._manager.pid is None

    def trouble(self) -> str | None:
        if self._manager.pid is None:
            return f"the JobManager has ended: {self._manager.last_words()}"
        try:
            known = self._cluster.rest.taskmanagers()
        except UnreachableError as error:
            return str(error)
        return None if self.name in known else "the JobManager does not know it yet"


def flink_home() -> Path:
    """The Flink inside the apache-flink package."""
    import pyflink  # late: it is not small, and only its folder is wanted

    return Path(next(iter(pyflink.__path__)))


def newest_checkpoint(folder: Path, skip: Sequence[Path] = ()) -> Path | None:
    """The newest *completed* checkpoint `folder`/JOB/chk-N of any job; None when there is none.

    A checkpoint is complete once its `_metadata` is there: Flink writes that last, and whole.
    """
    found: list[tuple[int, int, Path]] = []
    for metadata in folder.glob("*/chk-*/_metadata"):
        checkpoint = metadata.parent
        try:
            when = metadata.stat().st_mtime_ns
        except FileNotFoundError:
            continue  # superseded and removed while we looked
        if checkpoint not in skip:
            found.append((when, int(checkpoint.name.removeprefix("chk-")), checkpoint))
    return max(found)[2] if found else None
