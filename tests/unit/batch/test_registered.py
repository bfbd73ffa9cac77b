"""Which version a batch job scores with; a registry that cannot be asked is never one without the model."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from configs.exit_codes import ExitCode
from configs.schema import TrackingConfig
from ray_jobs.batch.registered import ModelChoice, find_version
from serve_app.console import exit_code_of
from serve_app.mlflow_client import TrackingUnavailable
from serve_app.model_source import RegistryAlias


class Lost:
    """A client whose every request fails as MLflow's does when it cannot reach the server's database."""

    def get_model_version_by_alias(self, *_: str) -> None:
        raise MlflowException("lost", INVALID_PARAMETER_VALUE) from requests.ConnectionError("refused")

    get_model_version = get_registered_model = get_model_version_by_alias


@pytest.mark.parametrize("choice", [ModelChoice("m", "production", ""), ModelChoice("m", "", "3")])
def test_a_job_ends_with_4(choice: ModelChoice) -> None:
    lost: Any = Lost()
    with pytest.raises(MlflowException, match="lost") as raised:
        find_version(lost, choice)
    assert exit_code_of(raised.value) == ExitCode.UNREACHABLE


def test_a_replica_keeps_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.model_source.connect", lambda _: Lost())
    with pytest.raises(TrackingUnavailable, match="does not answer"):
        RegistryAlias(TrackingConfig(uri="http://mlflow:5000"), "production").find()
