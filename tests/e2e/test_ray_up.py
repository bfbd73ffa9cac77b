"""`ray up` of configs/cluster-local.yaml on three hosts, a search, the gate and the service on them, and `ray down`.

The hosts are namespaces of this machine, which is the user's own: see tests/hosts.py. Commands are docs/cluster.md's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
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

    def run(self, *command: str, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        """``ray ...``, ``serve ...``; both streams in ``stdout``."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]], cwd=REPOSITORY, env=self.environment, timeout=timeout_s,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def done(self, *command: str) -> str:
        """What a command prints; it must end with 0."""
        done = self.run(*command)
        print(f"$ {' '.join(command)}\n{done.stdout}")  # pytest shows it after a failure
        assert done.returncode == 0, done.stdout
        return done.stdout

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
    user = User(folder / "cluster.yaml", environment)
    user.config.write_text(yaml.safe_dump(_for(hosts, folder)))
    user.done("ray", "get-auth-token", "--generate")
    (folder / ".ray" / "auth_token").chmod(0o600)
    file = folder / "cluster.env"
    file.touch(0o600)
    file.write_text("".join(f"{name}={value}\n" for name, value in cluster_env.items()))
    return user


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
    with ray_head(tmp_path, 1, neighbour, _connects) as another:
        user.done("ray", "up", "-y", str(user.config))
        token = user.done("ray", "get-auth-token").split()[-1]
        with user.tunnel(8265) as dashboard:
            wait_until(lambda: len(_alive(dashboard, token)) == 3, 240, lambda: _alive(dashboard, token))
            _nodes_are_closed_to_strangers(hosts, dashboard)
            _search_and_gate(user, dashboard)
            _serve(user, dashboard)
        assert _connects(another)
        user.done("ray", "down", "-y", str(user.config))
        for worker in list(hosts.hosts.values())[1:]:
            _stop(hosts, worker)
        wait_until(
            lambda: not any(map(_rays, hosts.hosts.values())), 120, lambda: list(map(_rays, hosts.hosts.values()))
        )
        assert _connects(another), "a Ray outside of the hosts must not notice any of this"


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
    submit = ("ray", "job", "submit", "--address", dashboard, "--working-dir", ".", "--", *job)
    told = user.done(*submit)
    assert "gate: promoted" in told
    assert "' succeeded" in told


def _serve(user: User, dashboard: str) -> None:
    user.done("serve", "deploy", "--address", dashboard, "configs/serve.yaml")
    with user.tunnel(8000) as service:
        wait_until(lambda: requests.get(f"{service}/ready", timeout=30).status_code == 200, 180)
        answer = requests.post(f"{service}/predict", json={"text": "This movie was fantastic!"}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model_version"] == "1"


def _stop(hosts: Network, worker: Host) -> None:
    """``ray down`` does not, where the machines are the user's own."""
    options = ("-i", str(hosts.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")
    command = ["ssh", *options, f"root@{worker.address}", "bash -ic 'ray stop'"]
    subprocess.run(command, capture_output=True, timeout=120, check=True)


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
