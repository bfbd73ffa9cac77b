"""The jobs under ``ray job submit``, on a Ray that ``ray start`` made, with token authentication on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from tests.integration.search.world import SMALL, arguments
from tests.servers import free_port, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


@dataclass
class Head:
    """A head node, its job server's address, and the environment that a user's shell has for it."""

    url: str
    token: str
    environment: dict[str, str]

    def submit(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """``ray job submit``, which waits for the job's end."""
        return subprocess.run(
            [str(BIN / "ray"), "job", "submit", "--submission-id", name, "--working-dir", ".", "--", *command],
            cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def ask(self, path: str) -> requests.Response:
        """What the job server says of a path."""
        return requests.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.token}"}, timeout=10)

    def status(self, name: str) -> dict[str, object]:
        """What it says of a finished job."""
        answer = self.ask(f"/api/jobs/{name}")
        assert answer.status_code == 200, answer.text
        job = answer.json()
        return {"status": job["status"], "code": job["driver_exit_code"]}

    def answers(self) -> bool:
        """Whether jobs may be submitted."""
        try:
            return self.ask("/api/jobs/").status_code == 200
        except requests.RequestException:
            return False


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    token, file = "0123456789abcdef" * 4, folder / "token"
    file.write_text(token)
    file.chmod(0o600)
    ports = [free_port() for _ in range(4)]
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(file),
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
        started = Head(environment["RAY_ADDRESS"], token, environment)
        try:
            wait_until(started.answers, 90, (folder / "ray.log").read_text)
            yield started
        finally:
            children = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            process.wait(90)
            _, alive = psutil.wait_procs(children, timeout=20)
            for child in alive:
                child.kill()
            log.close()


def pipeline(home: Path, *more: str, **changes: str) -> list[str]:
    values = SMALL | {"home": str(home), "search.trials": "1", "search.max_concurrent": "1", "training.epochs": "1"}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    sets = [part for text in arguments(values) for part in ("--set", text)]
    return ["python", "-m", "ray_jobs.pipeline", "--config", "quickstart.yaml", *sets, *more]


def test_status_follows_the_gate(head: Head, home: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "result.json", {"search__name": "once"}
    promoted = head.submit("promoted", *pipeline(home, "--json-file", str(out), **name))
    assert promoted.returncode == 0, promoted.stdout + promoted.stderr
    assert head.status("promoted") == {"status": "SUCCEEDED", "code": 0}
    assert json.loads(out.read_text())["decision"] == "promoted"

    # The same search, which is over, before a stricter gate.
    strict = {**name, "gate__minimum_f1": "1.0", "tracking__model_name": "another"}
    blocked = head.submit("blocked", *pipeline(home, "--resume", "once", **strict))
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
