"""All servers of one state folder, in the order they need each other; for CLI, demo and tests.

    stack = Stack.create(load_local_settings(state=folder), namespace="", free_ports=True)
    stack.start_servers()                          # Kafka, Cassandra, topics, tables; returns when
    they answer stack.start_flink(Path("streaming/job.py"))    # JobManager, TaskManagers, the job;
    returns when it runs stack.start_supervisor()                       # from now on what dies
    comes back stack.settings, stack.environment              # how to reach it stack.stop();
    stack.wipe()

What should run is a file, `STATE/stack.json`, so that any later process can pick the stack up:
`Stack.open(folder)`.
"""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path

from deploy.local import accounts, tools
from deploy.local.cassandra import Cassandra
from deploy.local.config import REPOSITORY, LocalSettings
from deploy.local.flink import Cluster, Job, JobManager, TaskManager, newest_checkpoint
from deploy.local.flink_rest import FlinkRest
from deploy.local.kafka import Kafka
from deploy.local.plan import Plan, PlanFile
from deploy.local.ports import Ports, free_base, require_free
from deploy.local.process import Process
from deploy.local.reach import environment_for, settings_for
from deploy.local.secure import Keys
from deploy.local.server import PATIENCE_S, POLL_S, Server
from deploy.local.tables import create_tables
from deploy.local.topics import create_topics
from schemas.errors import ConfigError, UnreachableError
from schemas.settings import CommonSettings

Report = Callable[[str], None]


def silent(_: str) -> None:
    """A report for nobody."""


class Stack:
    """The servers of one state folder."""

    def __init__(self, state: Path) -> None:
        """For `create` and `open`, which see that there is a plan."""
        self.state = state
        self._plan = PlanFile(state)
        self.supervisor = Process("supervisor", state)

    @classmethod
    def create(cls, local: LocalSettings, namespace: str = "", free_ports: bool = False) -> "Stack":
        """Plan a stack; one that is down may be planned anew, and keeps its free ports.

        Raises ConfigError when it runs with other settings, UnreachableError when no ports are
        free.
        """
        stack = cls(local.state.resolve())
        known = stack._plan.exists()
        base = local.port_base
        if free_ports:
            base = stack.plan.port_base if known else free_base()
        plan = Plan(
            port_base=base,
            namespace=namespace,
            jars=str(local.jars.resolve()),
            taskmanagers=local.taskmanagers,
            spares=local.spares,
            click_partitions=local.click_partitions,
            metrics=local.metrics,
            checkpoint_s=local.checkpoint_s,
            durable=local.durable,
            secure=local.secure,
        )
        if known and (running := stack.running()):
            old = replace(stack.plan, wanted=[], job=None)
            if old != plan:
                changed = [key for key, value in asdict(plan).items() if value != asdict(old)[key]]
                raise ConfigError(
                    f"{', '.join(running)} already run with another {', '.join(changed)}",
                    "run down first",
                )
            return stack
        if known and stack.plan.secure != plan.secure and (stack.state / "kafka").exists():
            raise ConfigError(
                f"the data in {stack.state} were made {'with' if stack.plan.secure else 'without'} --secure",
                "start it so, or run down --wipe first",
            )
        if plan.secure:
            Keys(stack.state).make()
        stack._plan.write(plan)
        return stack

    @classmethod
    def open(cls, state: Path) -> "Stack":
        """The stack of a state folder. Raises ConfigError when there never was one."""
        stack = cls(state.resolve())
        if not stack._plan.exists():
            raise ConfigError(
                f"there is no stack in {stack.state}",
                "run up first, or name another folder with --state",
            )
        return stack

    # ── how to reach it ──────────────────────────────────────────────────────────────────────────

    @property
    def plan(self) -> Plan:
        """What should run, read anew each time: another process may have changed it."""
        return self._plan.read()

    def locked(self) -> AbstractContextManager[None]:
        """To start and stop processes of this stack while nobody else does."""
        return self._plan.locked()

    @property
    def ports(self) -> Ports:
        return Ports(self.plan.port_base)

    @property
    def settings(self) -> CommonSettings:
        """Settings that reach this stack, and may do everything there."""
        return self.settings_of("admin")

    def settings_of(self, account: str) -> CommonSettings:
        """Settings of one of ACCOUNTS; without --secure all are alike."""
        return settings_for(self.plan.namespace, self.ports, self.keys, account)

    @property
    def environment(self) -> dict[str, str]:
        """The same as `settings` as variables, for any other process of the project."""
        return self.environment_of("admin")

    def environment_of(self, account: str) -> dict[str, str]:
        """The same as `settings_of`. It names files of secrets, and holds none."""
        return environment_for(self.plan.namespace, self.ports, self.keys, account)

    @property
    def keys(self) -> Keys | None:
        """Keys and passwords; None where there are none to be shown."""
        return Keys(self.state) if self.plan.secure else None

    @property
    def rest(self) -> FlinkRest:
        return self._cluster(self.plan, Job("")).rest

    @property
    def flink_url(self) -> str:
        return self.rest.url

    def servers(self) -> list[Server]:
        """Everything that should run, in the order of its start."""
        plan = self.plan
        return [server for server in self._known(plan) if server.name in plan.wanted]

    def server(self, name: str) -> Server:
        """One of them: kafka, cassandra, jobmanager, taskmanager-1, … Raises ConfigError."""
        for server in self.servers():
            if server.name == name:
                return server
        raise ConfigError(
            f"{name} is not part of the stack in {self.state}",
            f"it has {', '.join(self.plan.wanted)}",
        )

    def running(self) -> list[str]:
        """The names of the servers whose process is alive."""
        return [server.name for server in self.servers() if server.process.pid is not None]

    # ── start ────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, report: Report = silent) -> None:
        """See that everything can start, and fetch what it needs, before anything is started.

        Raises UnreachableError for Java, Maven, the disk, or a port that another process holds.
        """
        plan = self.plan
        tools.java()
        tools.require_disk(self.state)
        down = [server for server in self._known(plan) if server.process.pid is None]
        require_free({what: port for server in down for what, port in server.ports().items()})
        for name in ("kafka", "cassandra", "flink"):
            folder = Path(plan.jars)
            if not tools.fetched(name, folder):
                report(f"fetching the jars of {name}")
            tools.jars(name, folder)

    def start_servers(self, report: Report = silent, only: Sequence[str] = ("kafka", "cassandra")) -> None:
        """Start Kafka and Cassandra, wait until they take and give data, create topics and tables.

        What runs already is left alone. Raises UnreachableError, before anything is started, when a
        port is taken or a tool is missing, and later when a server does not come.
        """
        plan = self.plan
        self.prepare(report)
        self._start([name for name in ("kafka", "cassandra") if name in only], report)
        if "kafka" in only:
            create_topics(self.settings, plan.click_partitions)
            report("the topics are there")
        if "cassandra" in only:
            create_tables(self.settings)
            report("the tables are there")
        if self.keys:
            accounts.create(self.settings, self.keys, only)
            accounts.grant(self.settings, only)
            report("the accounts are there")

    def start_flink(
        self,
        entry: Path,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        report: Report = silent,
    ) -> None:
        """Start a cluster for the job in `entry`; returns when all its tasks run.

        The job goes on from the newest checkpoint in the state folder when there is one. `env` is
        added to what every process gets, which is `environment_of("job")`. Raises UnreachableError as
        `start_servers` does, ConfigError without entry.
        """
        if not entry.is_file():
            raise ConfigError(f"{entry} is no file", "name the job's entry file")
        self.prepare(report)
        # As wide as there are slots, less the spares.
        width = {"FRESHREC_STREAMING__PARALLELISM": str(self.plan.taskmanagers)}
        job = Job(str(entry.resolve()), list(args), {**self.environment_of("job"), **width, **(env or {})})
        workers = self.plan.taskmanagers + self.plan.spares
        with self.locked():
            self._plan.write(replace(self.plan, job=job))
        if (checkpoint := newest_checkpoint(self._cluster(self.plan, job).checkpoints)) is not None:
            report(f"the job goes on from {checkpoint.parent.name}/{checkpoint.name}")
        self._start([f"taskmanager-{number + 1}" for number in range(workers)] + ["jobmanager"], report)

    def start_supervisor(self) -> None:
        """From now on what dies comes back, also when this process has ended."""
        self.supervisor.start(
            [sys.executable, "-m", "deploy.local.supervisor", str(self.state)],
            {**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    def _start(self, names: Sequence[str], report: Report) -> None:
        with self.locked():
            plan = self.plan
            self._plan.write(
                replace(
                    plan,
                    wanted=[*plan.wanted, *(name for name in names if name not in plan.wanted)],
                )
            )
            servers = [self.server(name) for name in names]
            down = [server for server in servers if server.process.pid is None]
            try:
                require_free({purpose: port for server in down for purpose, port in server.ports().items()})
                for server in down:
                    report(f"starting {server.name}")
                    server.start()
            except UnreachableError:
                self._plan.write(plan)
                raise
        for server in servers:
            server.wait(supervised=self.supervisor.pid is not None)
            report(f"{server.name} answers")

    # ── stop ─────────────────────────────────────────────────────────────────────────────────────

    def stop(self, report: Report = silent) -> None:
        """Stop everything, the supervisor first; data and checkpoints stay for the next start."""
        self.supervisor.stop()
        with self.locked():
            for server in reversed(self.servers()):
                report(f"stopping {server.name}")
                server.process.stop()
            self._plan.write(replace(self.plan, wanted=[], job=None))

    def stop_flink(self, report: Report = silent) -> None:
        """Stop the job and its cluster; the next start goes on from the newest checkpoint."""
        with self.locked():
            flink = [server for server in self.servers() if isinstance(server, JobManager | TaskManager)]
            for server in reversed(flink):
                report(f"stopping {server.name}")
                server.process.stop()
            gone = {server.name for server in flink}
            plan = self.plan
            self._plan.write(replace(plan, wanted=[name for name in plan.wanted if name not in gone], job=None))

    def resize(self, taskmanagers: int, spares: int = 0) -> None:
        """Let the next `start_flink` start so many TaskManagers. Raises ConfigError while Flink runs."""
        with self.locked():
            if any(isinstance(server, JobManager | TaskManager) for server in self.servers()):
                raise ConfigError("Flink still runs", "stop it first")
            self._plan.write(replace(self.plan, taskmanagers=taskmanagers, spares=spares))

    def wipe(self) -> None:
        """Remove all data of a stopped stack; the jars stay. Raises ConfigError while it runs."""
        supervisor = ["supervisor"] if self.supervisor.pid is not None else []
        if running := self.running() + supervisor:
            raise ConfigError(f"{', '.join(running)} still run", "run down first")
        jars = Path(self.plan.jars)
        for path in self.state.iterdir():
            if path != jars and path not in jars.parents:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    # ── faults, for tests and for people who want to see it survive ──────────────────────────────

    def kill(self, name: str) -> int:
        """End one process as a crash would (kill -9); returns the pid it had.

        With a supervisor it comes back. Raises UnreachableError when it does not run.
        """
        process = self.server(name).process
        pid = process.pid
        if pid is None:
            raise UnreachableError(f"{name} does not run", "start it first")
        os.kill(pid, signal.SIGKILL)
        while process.pid == pid:
            time.sleep(POLL_S)
        return pid

    def restart(self, name: str, down_s: float = 0.0) -> None:
        """Stop one process, leave it down for `down_s` s, start it; returns when it answers."""
        server = self.server(name)
        with self.locked():  # else the supervisor would bring it back meanwhile
            server.process.stop()
            time.sleep(down_s)
            server.start()
        server.wait()

    def wait(self, name: str, patience_s: float = PATIENCE_S) -> None:
        """Return when one server answers, whoever starts it. Raises UnreachableError."""
        self.server(name).wait(patience_s, supervised=self.supervisor.pid is not None)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _known(self, plan: Plan) -> list[Server]:
        """Everything that could run; without a job, Flink is there for its ports alone."""
        jars, ports = Path(plan.jars), Ports(plan.port_base)
        cluster = self._cluster(plan, plan.job or Job(""))
        workers = range(1, plan.taskmanagers + plan.spares + 1)
        return [
            Kafka(self.state, jars, ports, self.settings.kafka, self.keys),
            Cassandra(self.state, jars, ports, self.settings.cassandra, plan.durable, self.keys),
            *(TaskManager(cluster, number) for number in workers),
            JobManager(cluster),
        ]

    def _cluster(self, plan: Plan, job: Job) -> Cluster:
        ports = Ports(plan.port_base)
        return Cluster(
            self.state, Path(plan.jars), ports, plan.taskmanagers, plan.metrics, plan.checkpoint_s, job, self.keys
        )
