"""configs/serve.yaml: `serve deploy` to a Ray that was started in another directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import configs
from tests.integration.serving.world import Registry, free_port, wait_until
from tests.servers import ray_head

DEPLOY_FILE = Path(configs.__file__).parent / "serve.yaml"
BIN = Path(sys.executable).parent


def test_deploy_file_is_valid_and_stays_on_this_machine():
    content = yaml.safe_load(DEPLOY_FILE.read_text())
    schema = ServeDeploySchema.model_validate(content)
    assert content["http_options"]["host"] == "127.0.0.1"
    assert content["logging_config"] == {"enable_access_log": False}
    assert schema.applications[0].import_path == "serve_app.app:build"
    assert schema.applications[0].args == {"config": "serving.yaml"}


@dataclass
class Cluster:
    """A Ray that `ray start` made, with its dashboard."""

    dashboard: str
    folder: Path

    def deploy(self, content: dict[str, Any]) -> None:
        file = self.folder / "deploy.yaml"
        file.write_text(yaml.safe_dump(content))
        command = [str(BIN / "serve"), "deploy", "--address", self.dashboard, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr

    def application(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=20).json()
        found: dict[str, Any] = answer["applications"].get("trialgate", {})
        return found


@pytest.fixture
def elsewhere(tracking_uri: str, tmp_path: Path) -> Iterator[Cluster]:
    """`ray start` in a directory that has nothing of ours, knowing the registry by MLFLOW_TRACKING_URI; Serve has its
    own proxy there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    environment["MLFLOW_TRACKING_URI"] = tracking_uri
    with ray_head(tmp_path, 4, environment, _answers) as dashboard:
        yield Cluster(dashboard, tmp_path)


def _answers(dashboard: str) -> bool:
    try:
        return httpx.get(f"{dashboard}/api/serve/applications/", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_serve_deploy_to_a_ray_started_elsewhere(elsewhere: Cluster, tracking_uri: str, tmp_path: Path):
    registry = Registry(tracking_uri, tmp_path)
    content = yaml.safe_load(DEPLOY_FILE.read_text())
    content["http_options"]["port"] = port = free_port()
    version = registry.register()
    registry.promote(version)

    elsewhere.deploy(content)
    wait_until(
        lambda: elsewhere.application().get("status") in ("RUNNING", "DEPLOY_FAILED"), 150, elsewhere.application
    )
    assert elsewhere.application()["status"] == "RUNNING", elsewhere.application()["message"]
    answer = httpx.post(f"http://127.0.0.1:{port}/predict", json={"text": "a good movie"}, timeout=30)
    assert answer.json()["label"] == "positive"
    assert answer.json()["model_version"] == version

    content["applications"][0]["args"]["config"] = "./serving.yaml"
    elsewhere.deploy(content)
    wait_until(lambda: elsewhere.application()["status"] == "DEPLOY_FAILED", 120, elsewhere.application)
    message = elsewhere.application()["message"]
    assert "relative path" in message
    assert "serving.yaml" in message
