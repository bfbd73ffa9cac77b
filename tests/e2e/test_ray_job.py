"""The jobs under ``ray job submit``, on a Ray that ``ray start`` made, with token authentication on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.search.world import SMALL, arguments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


@dataclass
class Head:
    """A head node, and the environment that a user's shell has for it."""

    environment: dict[str, str]

    def run(self, *command: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=timeout_s,
        )  # fmt: skip

    def submit(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        return self.run("ray", "job", "submit", "--submission-id", name, "--working-dir", ".", "--", *command)

    def status(self, name: str) -> dict[str, object]:
        """What the job API says of a finished job."""
        code = (
            "import json, sys; from ray.job_submission import JobSubmissionClient as C;"
            "i = C().get_job_info(sys.argv[1]);"
            "print(json.dumps({'status': str(i.status), 'code': i.driver_exit_code}))"
        )
        done = self.run("python", "-c", code, name)
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    ports = [_free_port() for _ in range(4)]
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ADDRESS": f"http://127.0.0.1:{ports[1]}",
    }
    with tempfile.TemporaryDirectory(prefix="tg-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        log = (folder / "ray.log").open("wb")
        process = subprocess.Popen(
            [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=3", "--disable-usage-stats",
             f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--dashboard-host=127.0.0.1",
             f"--ray-client-server-port={ports[2]}", f"--dashboard-agent-listen-port={ports[3]}",
             f"--temp-dir={temporary}", "--object-store-memory=200000000"],
            cwd=folder, env={k: v for k, v in environment.items() if k != "RAY_ADDRESS"}, stdout=log, stderr=log,
        )  # fmt: skip
        started = Head(environment)
        try:
            deadline = time.monotonic() + 90
            while started.run("ray", "job", "list").returncode:
                assert time.monotonic() < deadline, (folder / "ray.log").read_text()
                threading.Event().wait(1)
            yield started
        finally:
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(90)
            _, alive = psutil.wait_procs(children, timeout=20)
            for child in alive:
                child.kill()
            log.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def pipeline(home: Path, *more: str, **changes: str) -> list[str]:
    values = SMALL | {"home": str(home), "search.trials": "1", "search.max_concurrent": "1", "training.epochs": "1"}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    sets = [part for text in arguments(values) for part in ("--set", text)]
    return ["python", "-m", "ray_jobs.pipeline", "--config", "quickstart.yaml", *sets, *more]


def test_status_follows_the_gate(head: Head, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "result.json"
    promoted = head.submit("promoted", *pipeline(home, "--json-file", str(out)))
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    assert head.status("promoted") == {"status": "SUCCEEDED", "code": 0}
    assert json.loads(out.read_text())["decision"] == "promoted"

    blocked = head.submit("blocked", *pipeline(home, gate__minimum_f1="1.0", tracking__model_name="another"))
    assert blocked.returncode != 0
    assert head.status("blocked") == {"status": "FAILED", "code": 3}
    assert "gate: blocked" in blocked.stdout


def test_relative_paths_and_missing_addresses_are_refused_with_the_fix(head: Head, tmp_path: Path) -> None:
    relative = head.submit("relative", "python", "-m", "ray_jobs.search", "--config", "configs/quickstart.yaml")
    assert head.status("relative") == {"status": "FAILED", "code": 2}
    assert "is a relative path" in relative.stdout
    homeless = head.submit("homeless", "python", "-m", "ray_jobs.search", "--config", "quickstart.yaml")
    assert head.status("homeless") == {"status": "FAILED", "code": 2}
    assert "MLFLOW_TRACKING_URI" in homeless.stdout
