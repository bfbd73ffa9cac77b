"""The MLflow server of docker-compose.yml, with its own options, on a real PostgreSQL and an S3 server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests

from tests.s3 import S3
from tests.servers import MlflowServer, PostgreSQL
from tests.unit.ship.test_compose import SERVICES, words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
NAME = SERVICES["head"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def mlflow(postgresql: PostgreSQL, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """With compose's allowed hosts, its way to give the password, and its variables of the S3 store."""
    given = dict(option.removeprefix("--").split("=", 1) for option in words("mlflow")[2:])
    database = postgresql.create_database("compose")
    password = re.search(r":([^:@/]+)@", database)
    assert password, "the fixture's address has a password"
    assert re.fullmatch(r"postgresql://\w+@postgres/\w+", given["backend-store-uri"]), "no password in the command"
    variables = SERVICES["mlflow"]["environment"]
    environment = {name: s3.environment[name] for name in variables if name in s3.environment}
    assert set(variables) - set(environment) == {"PGPASSWORD"}
    server = MlflowServer(
        database.replace(f":{password[1]}@", "@"),
        tmp_path_factory.mktemp("compose"),
        f"--artifacts-destination={given['artifacts-destination'].replace('artifacts', s3.bucket)}",
        f"--allowed-hosts={given['allowed-hosts']}",
        host=NAME,
        workers=1,
        environment={**environment, "PGPASSWORD": password[1]},
    )
    yield server
    server.kill()


def test_it_answers_under_its_names_and_no_other(mlflow: MlflowServer) -> None:
    address = f"{mlflow.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert requests.get(address, headers={"Host": NAME}, timeout=30).status_code == 200
    refused = requests.get(address, headers={"Host": "evil.example:5000"}, timeout=30)
    assert refused.status_code == 403
    assert "Host" in refused.text


def test_artifacts_go_through_it_into_the_bucket(mlflow: MlflowServer, s3: S3) -> None:
    address = f"{mlflow.uri}/api/2.0/mlflow-artifacts/artifacts/0/folder/file.txt"
    sent = requests.put(address, data=b"what was sent", headers={"Host": NAME}, timeout=60)
    assert sent.status_code == 200, sent.text + mlflow.log
    assert s3.keys() == ["0/folder/file.txt"]
    assert requests.get(address, headers={"Host": NAME}, timeout=60).content == b"what was sent"
