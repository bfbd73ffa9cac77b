"""The connection to MLflow: who owns a run, how addresses are shown, and quick refusals."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, PERMISSION_DENIED, RESOURCE_DOES_NOT_EXIST, UNAUTHENTICATED

from configs.schema import TrackingConfig
from serve_app.mlflow_client import (
    HEARTBEAT,
    OWNER,
    TrackingUnavailable,
    connect,
    is_not_found,
    is_orphan,
    is_unreachable,
    owner_tags,
    redact,
)
from serve_app.refusals import refusal


def test_own_run_is_no_orphan_however_old_its_heartbeat() -> None:
    tags = owner_tags()
    assert not is_orphan(tags)
    assert not is_orphan(tags, now=time.time() + 3600)  # a process that is seen to live may be stopped or slow


def test_run_of_a_process_that_is_gone_is_an_orphan_at_once() -> None:
    program = "import json; from serve_app.mlflow_client import owner_tags; print(json.dumps(owner_tags()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)

    tags = json.loads(done.stdout)
    assert is_orphan(tags)
    # the same number given to a new process does not bring it back
    boot, namespace, _, started = tags[OWNER].split("/")
    assert is_orphan({**tags, OWNER: f"{boot}/{namespace}/{os.getpid()}/{started}"})


def test_run_of_another_machine_is_judged_by_its_heartbeat() -> None:
    tags = {OWNER: "another-boot/1/2/3", HEARTBEAT: "1000"}
    assert not is_orphan(tags, now=1059)
    assert is_orphan(tags, now=1061)
    assert not is_orphan(tags, now=900)  # clocks differ


@pytest.mark.parametrize("tags", [{}, {HEARTBEAT: "1"}, {OWNER: "a/b/c/d"}, {OWNER: "x", HEARTBEAT: "1"}])
def test_run_without_owner_is_somebody_elses(tags: dict[str, str]) -> None:
    assert not is_orphan(tags)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/path?token=abc", "http://host:5000/path"),
        ("postgresql://u:p@db/mlflow", "postgresql://db/mlflow"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
    ],
)
def test_credentials_are_not_shown(uri: str, shown: str) -> None:
    assert redact(uri) == shown


def _refused(uri: str) -> str:
    start = time.monotonic()
    with pytest.raises(TrackingUnavailable) as refused:
        connect(TrackingConfig(uri=uri, request_timeout_s=1))
    assert time.monotonic() - start < 15
    return str(refused.value)


def test_address_where_nobody_listens_is_refused_quickly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for uri in (f"http://user:secret@127.0.0.1:{port}", f"postgresql://user:secret@127.0.0.1:{port}/mlflow"):
        message = _refused(uri)
        assert f"127.0.0.1:{port}" in message
        assert "secret" not in message
        assert "tracking.uri" in message


def test_server_that_does_not_answer_is_refused_quickly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "cannot be used" in _refused(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_database_that_is_none_is_refused_quickly(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"this is not a database, whatever it is called" * 100)
    assert "mlflow.db" in _refused(f"sqlite:///{file}")
    assert "cannot be used" in _refused("nonsense://here")


def _answer(status: int, path: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code, response.url = status, f"http://mlflow:5000{path}"
    return requests.HTTPError(f"{status} for url: {response.url}", response=response)


def test_refusals_name_user_and_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = "API request to endpoint /api/2.0/mlflow/runs/set-tag failed with error code 403 != 200."
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    told = refusal(MlflowException(denied, PERMISSION_DENIED))
    assert told is not None
    assert "does not permit this to user 'ann': runs/set-tag" in told
    uploading = OSError("no upload")
    uploading.__cause__ = _answer(403, "/api/2.0/mlflow-artifacts/artifacts/1/abc/a.txt")
    assert "the artifact 1/abc/a.txt" in str(refusal(uploading))
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    assert "refuses a request without user name" in str(refusal(MlflowException("who?", UNAUTHENTICATED)))
    host = MlflowException("403: Invalid Host header - possible DNS rebinding attack detected", PERMISSION_DENIED)
    for other in (None, ValueError("x"), MlflowException("gone"), host, _answer(403, "/a.csv"),
                  _answer(404, "/api/2.0/mlflow-artifacts/artifacts/1/abc/a.txt")):  # fmt: skip
        assert refusal(other) is None


def test_s3_that_refuses_or_fails_is_gone_and_a_missing_object_is_not() -> None:
    def answered(status: int) -> Exception:
        return ClientError({"ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")

    for error in (
        NoCredentialsError(),
        EndpointConnectionError(endpoint_url="http://s3"),
        answered(403),
        answered(503),
    ):
        assert is_unreachable(error)
    for error in (answered(404), ValueError("x")):
        assert not is_unreachable(error)


def test_what_could_not_be_asked_for_is_not_missing() -> None:
    missing = MlflowException("no such model", RESOURCE_DOES_NOT_EXIST)
    assert is_not_found(missing)
    missing.__cause__ = requests.ConnectionError("refused")
    assert not is_not_found(missing)
    assert not is_not_found(MlflowException("a bug", INTERNAL_ERROR))
