"""Shared fixtures: one local Ray for the session, a migrated MLflow database per test, and a clean environment.

Nothing here or in a test writes outside temporary folders: HOME is one of them, for this process and all it starts.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import psutil
import pytest

from serve_app.mode import fast_path, fast_path_variables
from tests.servers import MlflowServer, PostgreSQL, empty_mlflow

REPOSITORY = Path(__file__).resolve().parent.parent
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")
OF_A_TEST = ("MLFLOW_", "TRIALGATE_")
RAY_CPUS = 8  # logical: several deployments fit at once, however few cores there are

hypothesis.settings.register_profile("trialgate", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("trialgate")

_home_key = pytest.StashKey[Path]()
_began_key = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """For a machine that is too slow for all tests in the time that there is."""
    parser.addoption(
        "--begin-within", type=float, metavar="SECONDS", help="skip tests that would begin later than that"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Gives the session an environment that no setting of the user's reaches. Runs before any test is imported."""
    home = Path(tempfile.mkdtemp(prefix="tg-home-"))
    config.stash[_home_key], config.stash[_began_key] = home, time.monotonic()
    for name in list(os.environ):
        lower = name.lower()
        if lower in PROXIES or lower.startswith(("mlflow_", "trialgate_", "ray_")):
            if name == "TRIALGATE_SHARED":
                continue
            del os.environ[name]
    os.environ.update(
        HOME=str(home),
        XDG_CACHE_HOME=str(home / ".cache"),
        HF_HOME=str(home / "huggingface"),
        MPLCONFIGDIR=str(home / "matplotlib"),
        HF_HUB_OFFLINE="1",
        MPLBACKEND="agg",
        OMP_NUM_THREADS="1",  # the models of tests are tiny: threads would only wait for each other
        # Workers of Ray and subprocesses import tests.* too, wherever they run.
        PYTHONPATH=os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
        RAY_AUTH_MODE="disabled",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_prestart_worker_first_driver="0",
        # Ray Serve reads these when it is imported, which is before any Ray is started: as in a shell that has them,
        # handles talk gRPC.
        **fast_path_variables(),
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes the session's HOME."""
    home = config.stash.get(_home_key, None)
    if home is not None:
        shutil.rmtree(home, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before any fixture of the test
def pytest_runtest_setup(item: pytest.Item) -> None:
    """See ``--begin-within``."""
    limit = item.config.getoption("--begin-within")
    if limit is not None and time.monotonic() - item.config.stash[_began_key] > limit:
        pytest.skip("time: this machine was too slow for all tests in the time that they had")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on real data need to know where it lies."""
    if os.environ.get("TRIALGATE_SHARED"):
        return
    reason = "real data: set TRIALGATE_SHARED to the folder that holds data/ and tools/"
    for item in items:
        if item.get_closest_marker("realdata"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def settings_stay_in_their_test() -> Iterator[None]:
    """Connecting to MLflow sets variables of the process; the next test starts without them."""
    before = {name: value for name, value in os.environ.items() if name.startswith(OF_A_TEST)}
    yield
    for name in [name for name in os.environ if name.startswith(OF_A_TEST)]:
        del os.environ[name]
    os.environ.update(before)


@dataclass(frozen=True)
class RayCluster:
    """The session's Ray: ``address`` (host:port of the GCS) and the folder that holds all its files."""

    address: str
    temp_dir: Path


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    """One local Ray with 8 logical CPUs, connected, for all tests of the session.

    Without dashboard: neither Tune, Train nor Serve need it. Teardown fails when a process of it stays alive.
    """
    import ray

    temp_dir = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))  # short: socket paths below it end at 107 bytes
    with fast_path():
        ray.init(
            address="local",
            num_cpus=RAY_CPUS,
            include_dashboard=False,
            object_store_memory=256 * 1024**2,
            _temp_dir=str(temp_dir),
        )
    try:
        yield RayCluster(ray.get_runtime_context().gcs_address, temp_dir)
    finally:
        mine = _processes_of(temp_dir)
        ray.shutdown()
        _, alive = psutil.wait_procs(mine, timeout=20)
        left = [process.pid for process in alive]
        for process in alive:
            process.kill()
        shutil.rmtree(temp_dir, ignore_errors=True)
        assert not left, f"processes of Ray survived its shutdown: {left}"


def _processes_of(temp_dir: Path) -> list[psutil.Process]:
    """Descendants of this process that name ``temp_dir``, and all that these started."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if any(str(temp_dir) in argument for argument in process.cmdline()):
                found.update({child.pid: child for child in [process, *process.children(recursive=True)]})
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow SQLite database with the schema in place and nothing in it. Migrating takes seconds, a copy none."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow-template")
    database = folder / "mlflow.db"
    before = Path.cwd()
    os.chdir(folder)  # the store makes ./mlruns where it is opened
    try:
        MlflowClient(f"sqlite:///{database}").search_experiments()
    finally:
        os.chdir(before)
    return database


@pytest.fixture
def tracking_uri(mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tracking address of an empty MLflow of this test's own: SQLite, with its artifacts in the test's folder.

    The test's working directory becomes ``tmp_path``, because MLflow resolves its default artifact root against it.
    """
    database = tmp_path / "mlflow.db"
    shutil.copyfile(mlflow_template, database)
    artifacts = (tmp_path / "mlruns").as_uri()
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE experiments SET artifact_location = ? || '/' || experiment_id", (artifacts,))
    connection.close()
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{database}"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """The session's PostgreSQL; tests make databases of their own in it."""
    server = PostgreSQL()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def session_mlflow_server(postgresql: PostgreSQL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """The session's ``mlflow server`` on PostgreSQL. A test takes ``mlflow_server``, which is empty."""
    server = MlflowServer(postgresql.create_database("mlflow"), tmp_path_factory.mktemp("mlflow-server"))
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def mlflow_server(session_mlflow_server: MlflowServer, postgresql: PostgreSQL) -> MlflowServer:
    """A running ``mlflow server`` on PostgreSQL with nothing in it; it proxies artifacts, from a folder."""
    empty_mlflow(postgresql, "mlflow")
    shutil.rmtree(session_mlflow_server.artifacts, ignore_errors=True)
    return session_mlflow_server
