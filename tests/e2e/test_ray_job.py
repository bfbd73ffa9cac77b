"""The jobs under ``ray job submit``, on a Ray that ``ray start`` made, with token authentication on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.integration.search.world import SMALL, arguments
from tests.servers import ray_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
REPOSITORY = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4


@dataclass
class Head:
    """A head node, and the environment that a user's shell has for it."""

    environment: dict[str, str]

    def submit(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """``ray job submit``, which waits for the job's end."""
        return subprocess.run(
            [str(BIN / "ray"), "job", "submit", "--submission-id", name, "--working-dir", ".", "--", *command],
            cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def status(self, name: str) -> dict[str, object]:
        """What the job server says of a finished job."""
        answer = _ask(self.environment["RAY_ADDRESS"], f"/api/jobs/{name}")
        assert answer.status_code == 200, answer.text
        job = answer.json()
        return {"status": job["status"], "code": job["driver_exit_code"]}


def _ask(url: str, path: str) -> requests.Response:
    return requests.get(f"{url}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10)


def _answers(url: str) -> bool:
    try:
        return _ask(url, "/api/jobs/").status_code == 200
    except requests.RequestException:
        return False


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    file = folder / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(file),
    }
    with ray_head(folder, 3, environment, _answers) as url:
        yield Head(environment | {"RAY_ADDRESS": url})


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
