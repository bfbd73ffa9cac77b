"""`ray up` of configs/cluster-local.yaml on three hosts, a search, the gate and the service on them, and `ray down`.

The hosts are namespaces of this machine, which is the user's own: see tests/hosts.py. Commands are docs/cluster.md's;
the blocks that ``User.block`` finds there are run as they stand.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.hosts import Host, Network, cannot_make_hosts, network
from tests.integration.search.world import SMALL, arguments
from tests.s3 import S3
from tests.servers import MlflowServer, free_port, ray_head, wait_until

_reason = cannot_make_hosts()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(_reason is not None, reason=f"hosts: {_reason}"),
]
REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MODEL = "ray-up-sentiment"


@dataclass
class User:
    """Whoever starts the cluster of ``config`` from this machine, in the repository's root."""

    config: Path
    environment: dict[str, str]
    instead: dict[str, str]  # of what the document writes

    def run(self, *command: str, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        """``ray ...``, ``serve ...``; both streams in ``stdout``."""
        return subprocess.run(
            command, cwd=REPOSITORY, env=self.environment, timeout=timeout_s,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def done(self, *command: str) -> str:
        """What a command prints; it must end with 0."""
        done = self.run(*command)
        print(f"$ {' '.join(command)}\n{done.stdout}")  # pytest shows it after a failure
        assert done.returncode == 0, done.stdout
        return done.stdout

    def block(self, command: str) -> str:
        """The document's block that has ``command`` in it, for this user's hosts and files."""
        blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs" / "cluster.md").read_text("utf-8"), re.DOTALL)
        (found,) = [block for block in blocks if command in block]
        for written, meant in self.instead.items():
            found = found.replace(written, meant)
        assert not re.search(r"192\.0\.2|trialgate@|id_ed25519", found), found
        return str(found)

    def script(self, block: str) -> str:
        """What a block prints; each of its commands must end with 0."""
        return self.done("bash", "-euo", "pipefail", "-c", block)

    @contextlib.contextmanager
    def watching(self, command: str) -> Iterator[Path]:
        """A command that goes on until Ctrl-C, which it gets at the end; yields the file of what it prints."""
        told = self.config.with_name("told.txt")
        with told.open("wb") as out:
            running = subprocess.Popen(
                shlex.split(command), cwd=REPOSITORY, env=self.environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, preexec_fn=_listen_to_ctrl_c,
            )  # fmt: skip
        try:
            yield told
        finally:
            os.killpg(running.pid, signal.SIGINT)
            running.wait(20)
            print(f"$ {command}\n{told.read_text()}")

    def names(self, *workers: Host) -> None:
        """Writes the addresses of these workers into the file, instead of those that stand there."""
        values = yaml.safe_load(self.config.read_text())
        values["provider"]["worker_ips"] = [worker.address for worker in workers]
        self.config.write_text(yaml.safe_dump(values))

    @contextlib.contextmanager
    def tunnel(self, port: int) -> Iterator[str]:
        """``ray dashboard``, which tunnels any port of the head's loopback; yields the URL on this machine."""
        here = free_port()
        command = [str(BIN / "ray"), "dashboard", str(self.config), "--port", str(here), "--remote-port", str(port)]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        tunnel = subprocess.Popen(command, cwd=REPOSITORY, env=self.environment, start_new_session=True, **quiet)
        try:
            wait_until(lambda: _connects(f"http://127.0.0.1:{here}"), 60)
            yield f"http://127.0.0.1:{here}"
        finally:
            os.killpg(tunnel.pid, signal.SIGTERM)
            tunnel.wait(20)

    def leave(self) -> None:
        """Ends the connections that ``ray up`` leaves open, and removes its folder of their sockets."""
        values = yaml.safe_load(self.config.read_text())
        user, cluster = (hashlib.sha256(text.encode()).hexdigest()[:10] for text in (getuser(), values["cluster_name"]))
        folder = Path("/tmp", f"ray_ssh_{user}", cluster)
        for socket in folder.glob("*"):
            subprocess.run(
                ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "host"], capture_output=True, timeout=20
            )
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # there, or in use by another cluster of the user's
            folder.parent.rmdir()


def _listen_to_ctrl_c() -> None:
    """As from a terminal: a test session that runs in the background ignores Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _connects(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        requests.get(url, timeout=10)
        return True
    return False


@pytest.fixture
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("hosts"), "head", "worker1", "worker2") as made:
        yield made


@pytest.fixture
def user(hosts: Network, tmp_path: Path, mlflow_template: Path) -> Iterator[User]:
    """With MLflow over HTTP and a bucket on this machine, which the hosts reach by the network."""
    database = tmp_path / "mlflow.db"
    shutil.copyfile(mlflow_template, database)
    s3 = S3(hosts.outside)
    mlflow = MlflowServer(f"sqlite:///{database}", tmp_path / "mlflow", address=hosts.outside, workers=1)
    settings = {
        "TRIALGATE_SEARCH__STORAGE": f"s3://{s3.bucket}/searches",
        "TRIALGATE_TRACKING__MODEL_NAME": MODEL,
        "MLFLOW_TRACKING_URI": mlflow.uri,
    }
    made = _user(hosts, tmp_path, settings | s3.environment)
    try:
        yield made
    finally:
        made.leave()
        mlflow.kill()
        s3.stop()


def _user(hosts: Network, folder: Path, cluster_env: Mapping[str, str], **more: str) -> User:
    """Has a home, Ray's token, ``cluster.env`` and a copy of the shipped file that names the hosts."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_TMPDIR": str(folder),  # where the local provider keeps its state
        "TMPDIR": str(folder),
        **more,
    }
    file = folder / "cluster.env"
    user = User(folder / "cluster.yaml", environment, _instead(hosts, folder / "cluster.yaml", file))
    user.config.write_text(yaml.safe_dump(_for(hosts, folder)))
    user.done("ray", "get-auth-token", "--generate")
    (folder / ".ray" / "auth_token").chmod(0o600)
    file.touch(0o600)
    file.write_text("".join(f"{name}={value}\n" for name, value in cluster_env.items()))
    return user


def _instead(hosts: Network, config: Path, cluster_env: Path) -> dict[str, str]:
    """What stands in the document for what is the user's own, and that."""
    head, worker, further = (host.address for host in hosts.hosts.values())
    key = f"{hosts.key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    return {
        "configs/cluster-local.yaml": str(config),
        " cluster.env": f" {cluster_env}",
        "192.0.2.10": head,
        "192.0.2.11": worker,
        "192.0.2.12": further,
        "192.0.2.13": further,  # the one that comes later
        "trialgate@": "root@",
        "~/.ssh/id_ed25519": key,
        "$HOME/.ssh/id_ed25519": key,
    }


def _for(hosts: Network, folder: Path) -> dict[str, Any]:
    """The shipped file for these hosts, which share this machine's packages and so install none."""
    values: dict[str, Any] = yaml.safe_load((REPOSITORY / "configs" / "cluster-local.yaml").read_text())
    head, *workers = (host.address for host in hosts.hosts.values())
    values["cluster_name"] = f"trialgate-test-{os.getpid()}"
    values["provider"] |= {"head_ip": head, "worker_ips": workers}
    values["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    values["file_mounts"]["~/trialgate.env"] = str(folder / "cluster.env")
    values["setup_commands"] = [
        *(command for command in values["setup_commands"] if "chmod" in command),
        "echo 'export RAY_AUTH_MODE=token PYTHONPATH=$HOME/trialgate' >> ~/.bashrc",
    ]
    return values


def _alive(url: str, token: str) -> list[dict[str, Any]]:
    """Ray's nodes that are alive, as its dashboard has them."""
    answer = requests.get(f"{url}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"}, timeout=30)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]["result"]["result"]
    return [row for row in rows if row["state"] == "ALIVE"]


def test_from_up_to_down(hosts: Network, user: User, tmp_path: Path) -> None:
    neighbour = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    _, worker, further = hosts.hosts.values()
    with ray_head(tmp_path, 1, neighbour, _connects) as another:
        user.names(worker)
        worker.stop_sshd()
        user.done("ray", "up", "-y", str(user.config))
        token = user.done("ray", "get-auth-token").split()[-1]
        _who_is_missing_and_why(hosts, user)
        worker.start_sshd()
        with user.tunnel(8265) as dashboard:
            before = _nodes(2, dashboard, token)
            user.script(user.block("worker_start_ray_commands"))
            grown = _nodes(3, dashboard, token)
            assert before < grown, "nothing was restarted"
            user.names(worker, further)
            user.done("ray", "up", "-y", "--no-restart", str(user.config))
            assert _nodes(3, dashboard, token) == grown
        user.done("ray", "up", "-y", str(user.config))
        with user.tunnel(8265) as dashboard:
            assert not _nodes(3, dashboard, token) & grown, "all were restarted"
            _nodes_are_closed_to_strangers(hosts, dashboard)
            _search_and_gate(user, dashboard)
            _serve(user, hosts, dashboard)
        assert _connects(another)
        assert "drained and deleted: " in user.script(user.block("ray down"))
        user.script(user.block("ray stop"))  # on the workers, where `ray down` does not
        wait_until(
            lambda: not any(map(_rays, hosts.hosts.values())), 120, lambda: list(map(_rays, hosts.hosts.values()))
        )
        assert _connects(another), "a Ray outside of the hosts must not notice any of this"


def _who_is_missing_and_why(hosts: Network, user: User) -> None:
    """Of the worker that nobody can log in to."""
    head, worker, _ = hosts.hosts.values()
    status, monitor = user.block("ray monitor").splitlines()
    wait_until(lambda: f"{worker.address}: " in user.script(status), 60)
    with user.watching(monitor) as told:
        refused = f"connect to host {worker.address} port 22: Connection refused"
        wait_until(lambda: refused in told.read_text(), 60, told.read_text)
    wait_until(lambda: "tail" not in head.processes(), 20, head.processes)


def _nodes(count: int, dashboard: str, token: str) -> set[str]:
    """Waits until so many nodes are alive, and gives their ids."""
    # Each look costs the head's dashboard some of the processor that starting the nodes needs.
    wait_until(lambda: len(_alive(dashboard, token)) == count, 240, lambda: _alive(dashboard, token), every_s=1)
    return {str(row["node_id"]) for row in _alive(dashboard, token)}


def _nodes_are_closed_to_strangers(hosts: Network, dashboard: str) -> None:
    for host in hosts.hosts.values():
        secrets = [host.home / ".ray" / "auth_token", host.home / "trialgate.env"]
        assert [file.stat().st_mode & 0o777 for file in secrets] == [0o600, 0o600]
    assert requests.get(f"{dashboard}/api/v0/nodes", timeout=30).status_code == 401


def _search_and_gate(user: User, dashboard: str) -> None:
    """Trials run on the workers, because the head has no processor for them."""
    values = SMALL | {"search.name": "on-hosts", "search.trials": "2", "search.max_concurrent": "2"}
    sets = [part for text in arguments(values) for part in ("--set", text)]
    job = ("python", "-m", "ray_jobs.pipeline", "--config", "quickstart.yaml", *sets)
    environment = ("--runtime-env", "configs/runtime_env.yaml")
    submit = ("ray", "job", "submit", "--address", dashboard, "--working-dir", ".", *environment, "--", *job)
    told = user.done(*submit)
    assert "gate: promoted" in told
    assert "' succeeded" in told


def _serve(user: User, hosts: Network, dashboard: str) -> None:
    """The replica runs on a worker, because the head has no processor for it, and the head's HAProxy asks it there."""
    deploy = ("serve", "deploy", "--address", dashboard)
    head, *workers = hosts.hosts.values()
    user.done(*deploy, "configs/serve.yaml")
    warned = "does not reach this replica"
    wait_until(lambda: any(warned in _replica_logs(host) for host in workers), 180)
    user.done("serve", "shutdown", "-y", "--address", dashboard)
    status = ("serve", "status", "--address", dashboard)
    wait_until(lambda: "proxies: {}" in user.run(*status).stdout, 60, every_s=2)
    user.done(*deploy, "configs/serve_all_interfaces.yaml")
    with user.tunnel(8000) as service:
        wait_until(lambda: requests.get(f"{service}/ready", timeout=30).status_code == 200, 180)
        # HAProxy takes a moment to learn of the replica; until then Ray's own proxy answers for it.
        wait_until(lambda: requests.get(f"{service}/ready", timeout=30).ok and _answered_by_replicas(head) > 0, 60)
        before = _answered_by_replicas(head)
        answer = requests.post(f"{service}/predict", json={"text": "This movie was fantastic!"}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"] == "1"
    assert _answered_by_replicas(head) > before
    assert not _replica_logs(head)
    assert "serving behind HAProxy, throughput-optimized replicas" in "".join(map(_replica_logs, workers))


def _answered_by_replicas(head: Host) -> int:
    """Requests to which HAProxy got a 2xx from a classifier, not from Ray's proxy, its way out without replicas."""
    statistics = requests.get(f"http://{head.address}:8404/stats;csv", timeout=30).text
    rows = csv.DictReader(statistics.removeprefix("# ").splitlines())
    return sum(int(row["hrsp_2xx"] or 0) for row in rows if "classifier" in row["svname"])


def _replica_logs(host: Host) -> str:
    """What the classifiers of a host wrote."""
    files = host.tmp.glob("ray/session_2*/logs/serve/replica_*classifier*.log")
    return "".join(file.read_text() for file in files)


def _rays(host: Host) -> list[str]:
    """What of Ray runs on a host."""
    return [line for line in host.processes().splitlines() if "ray" in line and "trialgate" not in line]


def test_a_head_that_nobody_can_log_in_to(hosts: Network, tmp_path: Path) -> None:
    hosts.hosts["head"].stop_sshd()
    user = _user(hosts, tmp_path, {}, AUTOSCALER_NODE_START_WAIT_S="15")  # 15 minutes unless it is told otherwise
    try:
        up = user.run("ray", "up", "-y", str(user.config))
        assert up.returncode != 0
        assert f"connect to host {hosts.hosts['head'].address} port 22: Connection refused" in up.stdout
        assert "Failed to setup head node." in up.stdout
    finally:
        user.leave()
    nobody = f"http://127.0.0.1:{free_port()}"
    submitted = user.run("ray", "job", "submit", "--address", nobody, "--", "python", "-m", "ray_jobs.search")
    assert submitted.returncode != 0
    assert f"Failed to connect to Ray at address: {nobody}" in submitted.stdout
