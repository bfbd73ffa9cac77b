"""The access log as it lies in the log files of Ray Serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RayCluster
from tests.integration.serving.world import Service, wait_until


@pytest.fixture
def logs(ray_cluster: RayCluster) -> Path:
    return ray_cluster.temp_dir / "session_latest" / "logs"


def access_lines(logs: Path, request_id: str) -> list[dict[str, Any]]:
    lines = [line for file in (logs / "serve").glob("replica_*.log") for line in file.read_text().splitlines()]
    read = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in read if line["request_id"] == request_id]


def test_every_request_is_one_line_in_the_log_of_its_replica(service: Service, logs: Path):
    ids = [f"access-{number}" for number in range(4)]
    headers = [{"x-request-id": request_id, "x-api-key": "key-nobodymaysee"} for request_id in ids]
    service.client.post("/predict", json={"text": "good textnobodymaysee"}, headers=headers[0])
    service.client.post("/batch_predict", json={"texts": ["good", "bad"]}, headers=headers[1])
    service.client.post("/predict", json={"text": " "}, headers=headers[2])
    service.client.get("/pathnobodymaysee", headers=headers[3])
    wait_until(lambda: all(access_lines(logs, request_id) for request_id in ids), 20)

    (one,), (several,), (refused,), (lost,) = (access_lines(logs, request_id) for request_id in ids)
    assert (one["method"], one["route"], one["status"], one["error"]) == ("POST", "/predict", 200, None)
    assert (one["model_version"], one["texts"]) == (service.first_version, 1)
    assert one["body_bytes"] == len('{"text":"good textnobodymaysee"}')
    assert one["ms"]["total"] >= one["ms"]["classify"] >= one["ms"]["forward"] > 0
    assert (several["route"], several["texts"]) == ("/batch_predict", 2)
    assert (refused["status"], refused["error"], refused["model_version"]) == (422, "empty_text", None)
    assert (lost["method"], lost["route"], lost["status"]) == ("GET", "other", 404)


def test_no_log_of_the_service_has_a_text_a_key_or_a_path_and_serve_does_not_log_it_again(service: Service, logs: Path):
    headers = {"x-request-id": "access-again", "x-api-key": "key-nobodymaysee"}
    service.client.post("/predict", json={"text": "good textnobodymaysee"}, headers=headers)
    service.client.get("/pathnobodymaysee", headers=headers)
    wait_until(lambda: len(access_lines(logs, "access-again")) == 2, 20)
    told = [line for file in logs.rglob("*.*") if file.is_file() for line in _lines(file)]
    assert not [line for line in told if "nobodymaysee" in line]
    assert len([line for line in told if "access-again" in line]) == 2
    assert not [line for line in told if "POST /predict" in line]


def test_the_mode_is_logged_by_every_replica(service: Service, logs: Path):
    for file in (logs / "serve").glob("replica_trialgate_classifier_*.log"):
        assert [line for line in _lines(file) if "serving behind HAProxy, throughput-optimized replicas" in line], file


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()
