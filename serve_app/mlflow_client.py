"""The one way to MLflow: connecting, the shared names of tags and aliases, and the heartbeat of running runs.

MLflow is imported inside the functions: it takes seconds, and it reads switches from the environment while it is
imported, which ``connect`` sets first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from configs.exit_codes import Unreachable
from configs.schema import TrackingConfig
from serve_app.refusals import is_s3_gone, refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException

logger = logging.getLogger(__name__)

# Tags of runs.
KIND: Final = "trialgate.kind"  # one of the KIND_ values below; also on registered models
KIND_SEARCH: Final = "search"
KIND_TRIAL: Final = "trial"
KIND_DATASET: Final = "dataset"
KIND_DECISION: Final = "decision"
KIND_MODEL: Final = "model"
KIND_LEASE: Final = "lease"  # a registered model that is none: its versions are tickets of ``gate.lease``
PARENT_RUN: Final = "mlflow.parentRunId"
SEARCH_NAME: Final = "trialgate.search"
TRIAL_ID: Final = "trialgate.trial_id"
MODEL_URI: Final = "trialgate.model_uri"  # absolute path or fsspec URL of a trial's best saved-model folder
ENDING: Final = "trialgate.ending"  # why a search ended before its last trial
MODEL_REMOVED: Final = "trialgate.model_removed"  # why a trial has no saved model any more
BEST_RUN: Final = "trialgate.best_run_id"  # on a search's parent run
TEST_DIGEST: Final = "trialgate.test_digest"
TEST_URI: Final = "trialgate.test_uri"  # runs:/<dataset run>/test.parquet
OUTCOME: Final = "trialgate.outcome"  # finished | stopped_early | failed | killed
F1_DEFINITION: Final = "trialgate.f1_definition"
HEARTBEAT: Final = "trialgate.heartbeat"  # unix seconds
OWNER: Final = "trialgate.owner"  # boot id/pid namespace/pid/start time
MODEL_NAME: Final = "trialgate.model_name"
DECISION: Final = "trialgate.decision"
DECIDED_AT: Final = "trialgate.decided_at"
DECIDED_BY: Final = "trialgate.decided_by"
FORCED_REASON: Final = "trialgate.forced_reason"

# Tags of registered versions, which also have the four of the newest decision that gave them an alias.
VERSION_F1: Final = "trialgate.f1"
WEIGHTS_DIGEST: Final = "trialgate.weights_digest"
DECISION_ID: Final = "trialgate.decision_id"
PRODUCTION_SINCE: Final = "trialgate.production_since"
ROLLED_BACK: Final = "trialgate.rolled_back"

PRODUCTION: Final = "production"
PREVIOUS: Final = "previous"
CHALLENGER: Final = "challenger"  # passed the gate and waits beside production
SETTINGS_FILE: Final = "settings.json"
TEST_FILE: Final = "test.parquet"

_NOT_FOUND: Final = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # error codes of MLflow, store by store

HEARTBEAT_SECONDS: Final = 10.0
HEARTBEAT_LIMIT_SECONDS: Final = 60.0
_PROBE_SECONDS: Final = 4.0
_FIRST_SECONDS: Final = 10.0
_PORTS: Final = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


class TrackingUnavailable(Unreachable):
    """MLflow cannot be reached or refuses us; the message has the address (without credentials) and the fix."""


def connect(tracking: TrackingConfig) -> MlflowClient:
    """A client of the tracking server and registry at ``tracking.uri``, after one answered request.

    Sets MLflow's time-out and retries for this process and its children, and its global tracking address, which
    ``models:/`` and ``runs:/`` addresses are resolved with. User name and password of an http(s) address go into
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and the client's own address is without them. Raises
    TrackingUnavailable within about 15 seconds.
    """
    if tracking.uri is None:
        raise ValueError("tracking.uri is not set: load the settings with configs.loading.load_settings")
    uri = _credentials_into_environment(tracking.uri)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(min(tracking.request_timeout_s, _FIRST_SECONDS))))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # for the first request only
    os.environ["MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR"] = "1"
    os.environ["MLFLOW_LOG_UV_FILES"] = "false"  # it would upload the working directory's pyproject.toml
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    _probe(uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.utils.uv_utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        with _kept_environment("MLFLOW_TRACKING_URI"):  # MLflow exports it, and settings loaded later would obey it
            mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError, ImportError) as error:
        raise TrackingUnavailable(refusal(error) or _unreachable(uri, error)) from error
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(tracking.request_timeout_s)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = str(tracking.max_retries)
    return client


def _credentials_into_environment(uri: str) -> str:
    """The address without them. MLflow forgets those of an address in some requests (for artifacts), and an address
    is what ends up in messages and records."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def makes_database(tracking: TrackingConfig) -> bool:
    """Whether ``connect`` would make a new SQLite database."""
    return (tracking.uri or "").startswith("sqlite") and not _sqlite_path(tracking.uri or "").exists()


@contextlib.contextmanager
def _kept_environment(name: str) -> Iterator[None]:
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def ensure_experiment(client: MlflowClient, name: str) -> str:
    """Id of the experiment ``name``, which is created, or restored if it was deleted, where need be.

    With SQLite its artifacts lie beside the database; MLflow's default is the directory where the command runs.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if client.tracking_uri.startswith("sqlite"):
            folder = _sqlite_path(client.tracking_uri).parent / "artifacts" / re.sub(r"[^\w.-]+", "_", name)
            location = folder.as_uri()
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:  # somebody else was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run ``run_id``, which may be a deleted one; None when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if is_not_found(error):
            return None
        raise


def is_not_found(error: MlflowException) -> bool:
    """Whether ``error`` says that there is no such thing. MLflow gives one that it could not ask for the same codes."""
    return error.error_code in _NOT_FOUND and not is_unreachable(error)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether ``error``, or one that it was raised from, says that the tracking server, its database or S3 is gone."""
    if error is None:
        return False
    import requests
    import sqlalchemy.exc

    gone = (TrackingUnavailable, requests.ConnectionError, requests.Timeout, sqlalchemy.exc.OperationalError)
    if isinstance(error, requests.exceptions.RetryError):  # a status that will pass, from MLflow or a proxy before it
        return "500 error" not in str(error)  # which MLflow answers for its own bugs, and 503 without its database
    return isinstance(error, gone) or is_s3_gone(error) or is_unreachable(error.__cause__ or error.__context__)


def redact(uri: str) -> str:
    """``uri`` without user name, password and query, for messages and logs."""
    parts = urlsplit(uri)
    if parts.scheme == "sqlite":
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _probe(uri: str) -> None:
    """Fails fast where MLflow itself would retry for minutes."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    try:
        if scheme == "sqlite":
            _probe_sqlite(_sqlite_path(uri))
        elif parts.hostname and scheme in _PORTS and not _proxied(scheme):
            address = (parts.hostname, parts.port or _PORTS[scheme])
            socket.create_connection(address, timeout=_PROBE_SECONDS).close()
    except (OSError, ValueError, sqlite3.Error) as error:
        raise TrackingUnavailable(_unreachable(uri, error)) from error


def _proxied(scheme: str) -> bool:
    # Behind a proxy the server's name may not even resolve here: then MLflow's own request has to find out.
    return any(os.environ.get(name) for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "ALL_PROXY"))


def _sqlite_path(uri: str) -> Path:
    return Path(uri.partition(":///")[2].partition("?")[0])


def _probe_sqlite(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"no permission to write {path}")
    if path.exists():
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_PROBE_SECONDS)) as database:
            database.execute("select count(*) from sqlite_master").fetchone()


def _unreachable(uri: str, error: BaseException) -> str:
    reason = str(error).replace(uri, redact(uri)).strip() or type(error).__name__
    password = urlsplit(uri).password
    if password:
        reason = reason.replace(password, "***")
    return (
        f"MLflow at {redact(uri)} cannot be used: {reason.splitlines()[0]}\n"
        "Start it there, or set tracking.uri (or MLFLOW_TRACKING_URI) to its address."
    )


def owner_tags(now: float | None = None) -> dict[str, str]:
    """The tags that mark a run as owned by this living process: HEARTBEAT and OWNER. Set them when creating the run."""
    return {HEARTBEAT: f"{time.time() if now is None else now:.0f}", OWNER: _owner()}


def is_orphan(tags: Mapping[str, str], now: float | None = None) -> bool:
    """Whether the process that owns a RUNNING run is gone.

    On the owner's own machine the process table decides; from elsewhere a heartbeat older than
    ``HEARTBEAT_LIMIT_SECONDS`` does. A run without these tags is somebody else's: never an orphan.
    """
    heartbeat = tags.get(HEARTBEAT)
    if len(tags.get(OWNER, "").split("/")) != 4 or heartbeat is None:
        return False
    gone = is_owner_gone(tags)
    if gone is not None:
        return gone
    try:
        age = (time.time() if now is None else now) - float(heartbeat)
    except ValueError:
        return False
    return age > HEARTBEAT_LIMIT_SECONDS


def is_owner_gone(tags: Mapping[str, str]) -> bool | None:
    """What the process table says of the process in the tag OWNER; None where this machine's cannot know it.

    A process that is there may still be stopped.
    """
    owner = tags.get(OWNER, "").split("/")
    if len(owner) != 4 or not owner[0] or owner[:2] != _owner().split("/")[:2]:
        return None
    return _start_time(owner[2]) != owner[3]


def _owner() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # no /proc: only the heartbeat tells
        return f"//{os.getpid()}/"
    return f"{boot}/{namespace}/{os.getpid()}/{_start_time(str(os.getpid()))}"


def _start_time(pid: str) -> str:
    """Clock ticks since boot when the process started; empty if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class Heartbeat:
    """Context manager that renews a HEARTBEAT tag from a daemon thread. Never raises into its caller.

    ``renew`` writes the tag's new value, unix seconds as text; ``what`` is what messages call its owner.
    """

    def __init__(self, renew: Callable[[str], object], what: str, interval_s: float = HEARTBEAT_SECONDS) -> None:
        self._renew, self._what, self._interval_s = renew, what, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of {what}", daemon=True)

    @classmethod
    def of_run(cls, client: MlflowClient, run_id: str) -> Heartbeat:
        """The heartbeat of a RUNNING run that was created with ``owner_tags``."""
        return cls(lambda value: client.set_tag(run_id, HEARTBEAT, value), f"run {run_id}")

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        # A beat may hang in a lost connection; its time-out ends it, and nobody has to wait for that.
        self._thread.join(timeout=1.0)

    def _beat(self) -> None:
        warned = False
        while not self._stop.wait(self._interval_s):
            try:
                self._renew(f"{time.time():.3f}")
                warned = False
            except Exception as error:  # noqa: BLE001 - whatever the tracking server does, the work goes on
                if not warned:
                    logger.warning("the heartbeat of %s could not be written: %s", self._what, error)
                warned = True
