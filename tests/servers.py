"""The servers of a real installation, started by the tests on free ports of the loopback and in temporary folders.

PostgreSQL is Debian's; it refuses to run as root, so root runs it as the user ``postgres`` that the package makes.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import requests

NEEDS_POSTGRESQL = "needs PostgreSQL: apt-get install postgresql"
_DEBIAN = Path("/usr/lib/postgresql")
_ROLE = "trialgate"
_MLFLOW_START_S = 120.0  # imports and the migration of an empty database, on a busy machine


def free_port() -> int:
    """A port of the loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgreSQL:
    """A cluster of its own: data and socket in a temporary folder, a password, no durability.

    Skips the test when PostgreSQL is not installed.
    """

    def __init__(self) -> None:
        self._binaries = _postgresql_binaries()
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip(NEEDS_POSTGRESQL)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        # Not below pytest's own folder, which other users may not enter; short: socket paths end at 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="tg-pg-", dir="/tmp"))
        self.password, self.port = secrets.token_hex(8), free_port()
        passwords = self.folder / "password"
        passwords.write_text(self.password, encoding="ascii")
        if self._as:
            for path in (self.folder, passwords):
                os.chown(path, self._as["user"], self._as["group"])
        self._run("initdb", "-D", "data", "-U", _ROLE, "--auth=scram-sha-256", "--pwfile=password", "--no-sync",
                  "--encoding=UTF8", "--locale=C.UTF-8")  # fmt: skip
        self.start()

    def start(self) -> None:
        """Returns once it takes connections."""
        options = f"-p {self.port} -k {self.folder} -h 127.0.0.1 -F"
        self._run("pg_ctl", "-D", "data", "-w", "-t", "60", "-l", "server.log", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Ends it. Mode ``immediate`` is a crash: connections are cut, and the next start recovers."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", mode, "stop")

    def remove(self) -> None:
        """Ends it, if it runs, and removes its folder."""
        if (self.folder / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """SQLAlchemy's address of a database, with user and password."""
        return f"postgresql://{_ROLE}:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Makes an empty database and returns its address."""
        self.execute("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, database: str, *statements: str) -> list[tuple[Any, ...]]:
        """Runs SQL, each statement for itself; returns the rows of the last one."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _run(self, program: str, *arguments: str) -> None:
        # Into a file: a server that pg_ctl started keeps a pipe open for as long as it lives.
        log = self.folder / f"{program}.log"
        with log.open("ab") as output:
            done = subprocess.run(
                [self._binaries / program, *arguments],
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                **self._as,
            )
        assert done.returncode == 0, f"{program} {' '.join(arguments)}:\n{log.read_text(encoding='utf-8')}"


def _postgresql_binaries() -> Path:
    """The folder with initdb and pg_ctl: Debian keeps them out of PATH, one folder for each major version."""
    debian = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    if found is None:
        pytest.skip(NEEDS_POSTGRESQL)
    return Path(found).parent


class MlflowServer:
    """``mlflow server`` on a database: ``uri`` is its address, ``artifacts`` the folder that it keeps artifacts in.

    ``host``: the name that it must be called by, where it is told not to answer under others. ``address``: what it
    listens on.
    """

    def __init__(
        self,
        backend: str,
        folder: Path,
        *options: str,
        host: str | None = None,
        address: str = "127.0.0.1",
        workers: int = 2,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.backend, self.folder, self.artifacts = backend, folder, folder / "artifacts"
        self.port = free_port()
        self.uri = f"http://{address}:{self.port}"
        self._headers = {} if host is None else {"Host": host}
        self._command: Sequence[str] = [
            *(sys.executable, "-m", "mlflow", "server", "--host", address, "--port", str(self.port)),
            *("--backend-store-uri", backend, "--workers", str(workers)),
            *(options or ("--artifacts-destination", self.artifacts.as_uri())),
        ]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "TRIALGATE_"))}
        self._environment = kept | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # three more processes, for evaluations of language models
            **(environment or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Returns once it answers."""
        with (self.folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._answers, _MLFLOW_START_S, lambda: self.log)

    def processes(self) -> list[psutil.Process]:
        """The server and all its workers."""
        assert self._process is not None
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    def send(self, number: signal.Signals) -> None:
        """A signal to the server and all its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Kills the server and all its workers, and returns once none is left."""
        if self._process is None:
            return
        group = self._process.pid
        os.killpg(group, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: _group_is_gone(group), 15)
        self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"mlflow server ended:\n{self.log}"
        # Not /health, which it answers before it has opened its database. 401: it has users.
        address = f"{self.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
        try:
            return requests.get(address, headers=self._headers, timeout=30).status_code in (200, 401)
        except requests.RequestException:
            return False


class BasicAuthServer(MlflowServer):
    """``mlflow server --app-name basic-auth``. Whoever has no other right may read; ``users`` has the passwords.

    ``reader`` has no further right, ``editor`` has EDIT and ``promoter`` MANAGE on all experiments and models.
    """

    def __init__(self, backend: str, users: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.users = {name: secrets.token_hex(12) for name in ("admin", "reader", "editor", "promoter")}
        settings = folder / "basic_auth.ini"
        settings.write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {users}\nadmin_username = admin\n"
            f"admin_password = {self.users['admin']}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "auth_cache_ttl_seconds = 3600\n",  # else every request spends half a second on its password's hash
            encoding="utf-8",
        )
        environment = {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
        artifacts = ("--artifacts-destination", (folder / "artifacts").as_uri())
        super().__init__(backend, folder, *artifacts, "--app-name", "basic-auth", workers=1, environment=environment)
        for name in ("reader", "editor", "promoter"):
            self._ask("2.0/mlflow/users/create", username=name, password=self.users[name])
        for name, right in {"editor": "EDIT", "promoter": "MANAGE"}.items():
            for kind in ("experiment", "registered_model"):
                self.grant(name, kind, "*", right)

    def grant(self, user: str, kind: str, which: str, permission: str) -> None:
        """Gives ``user`` a permission on an experiment (its id), a registered model (its name), or on all ("*")."""
        self._ask("3.0/mlflow/users/permissions/grant",
                  username=user, resource_type=kind, resource_id=which, permission=permission)  # fmt: skip

    def _ask(self, path: str, **body: str) -> None:
        answer = requests.post(f"{self.uri}/api/{path}", json=body, auth=("admin", self.users["admin"]), timeout=30)
        assert answer.status_code == 200, answer.text


@contextlib.contextmanager
def ray_head(folder: Path, cpus: int, environment: Mapping[str, str], answers: Callable[[str], bool]) -> Iterator[str]:
    """What ``ray start --head`` makes in ``folder``, with its dashboard; yields the dashboard's address.

    ``answers``: whether it does, at an address. At the end all is killed, because Ray's own end takes long.
    """
    port, dashboard, client, agent = (str(free_port()) for _ in range(4))
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        command = [
            *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"),
            *(f"--num-cpus={cpus}", "--object-store-memory=200000000", f"--temp-dir={temporary}"),
            *("--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            f"--dashboard-agent-listen-port={agent}",
        ]
        with (folder / "ray.log").open("wb") as log:
            head = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{dashboard}"
            wait_until(lambda: answers(url), 90, (folder / "ray.log").read_text)
            yield url
        finally:
            processes = psutil.Process(head.pid).children(recursive=True)
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            head.kill()
            head.wait()
            psutil.wait_procs(processes, timeout=20)


def _group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return True
    return False


def empty_mlflow(postgresql: PostgreSQL, database: str) -> None:
    """Removes all that is in a database of MLflow's, except its schema and the experiment that it needs to have."""
    kept = ("alembic_version", "experiments", "workspaces")
    tables = postgresql.execute(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    doomed = ", ".join(f'"{table}"' for (table,) in tables if table not in kept)
    postgresql.execute(database, f"TRUNCATE {doomed} CASCADE", "DELETE FROM experiments WHERE experiment_id <> 0")


def empty_permissions(postgresql: PostgreSQL, database: str) -> None:
    """Takes back what users were given on single experiments and models, such as those that they made themselves."""
    postgresql.execute(database, "DELETE FROM role_permissions WHERE resource_pattern <> '*'")


def wait_until(
    true: Callable[[], bool], limit_s: float, shown: Callable[[], Any] = lambda: "", *, every_s: float = 0.05
) -> None:
    """Waits for ``true()``; fails after ``limit_s`` with ``shown()`` in the message."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, f"not within {limit_s} s: {shown()}"
        time.sleep(every_s)
