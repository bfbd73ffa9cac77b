"""From an alias in the registry to a saved-model folder on this machine.

``RegistryAlias`` asks MLflow which version is meant and downloads it; ``ModelCache`` keeps downloads that are whole,
shared by all replicas of a machine: a download goes to a temporary name under a file lock and is renamed when it is
complete. The cache also remembers the last version that loaded well, so that a new replica can start from it while
MLflow is down or the version under the alias is broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from configs.schema import TrackingConfig
from serve_app.mlflow_client import VERSION_F1, TrackingUnavailable, connect, redact
from serve_app.refusals import refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient

_KEPT_VERSIONS = 4  # on disk, per model: production, previous, and those on their way in and out
_LOCK_TIMEOUT_S = 600.0  # another replica may be downloading gigabytes


@dataclass(frozen=True)
class ModelVersion:
    """A registered version: name, version and source say which; ``f1`` is the gate's score, None if it left none."""

    name: str
    version: str
    source: str  # what the registry says the artifact is; tells apart a version that was deleted and made anew
    run_id: str | None = field(default=None, compare=False)
    f1: float | None = field(default=None, compare=False)


class RegistryAlias:
    """The version under an alias. One thread at a time."""

    def __init__(self, tracking: TrackingConfig, alias: str) -> None:
        self._tracking, self._alias = tracking, alias
        self._client: MlflowClient | None = None

    def find(self) -> ModelVersion | None:
        """The version under the alias now; None while there is none. Raises TrackingUnavailable."""
        name = self._tracking.model_name
        try:
            client = self._connected()
        except TrackingUnavailable:
            raise
        except Exception as error:
            raise self._unavailable(error) from error
        # Only now: connecting sets switches (no telemetry, which writes into HOME) that MLflow reads when imported.
        from mlflow.exceptions import MlflowException

        try:
            found = client.get_model_version_by_alias(name, self._alias)
        except MlflowException as error:
            # SQLite and the server's store differ: no such model is the first, no such alias the second of these.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise self._unavailable(error) from error
        except Exception as error:
            raise self._unavailable(error) from error
        return ModelVersion(
            name=name,
            version=str(found.version),
            source=f"{found.source}@{found.creation_timestamp}",
            run_id=found.run_id or None,
            f1=_number(found.tags.get(VERSION_F1)),
        )

    def download(self, version: ModelVersion, into: Path) -> None:
        """Writes the version's artifact below ``into``. Raises OSError or MLflow's exceptions."""
        uri = self._connected().tracking_uri  # as configured, but without user and password
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow.artifacts

        mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{version.name}/{version.version}",
            dst_path=str(into),
            tracking_uri=uri,
            registry_uri=uri,
        )

    def _connected(self) -> MlflowClient:
        if self._client is None:
            self._client = connect(self._tracking)
        return self._client

    def _unavailable(self, error: Exception) -> TrackingUnavailable:
        reason = refusal(error) or (str(error).strip() or type(error).__name__).splitlines()[0]
        return TrackingUnavailable(f"the registry at {redact(self._tracking.uri or '')} does not answer: {reason}")


def find_model_folder(downloaded: Path) -> Path:
    """The one saved-model folder below ``downloaded``. Raises ModelFolderError if there is none, or several."""
    from serve_app.inference.saved_model import INFO_FILE, ModelFolderError  # brings torch

    found = sorted(path.parent for path in downloaded.rglob(INFO_FILE))
    if len(found) != 1:
        raise ModelFolderError(
            f"expected one saved model (a folder with {INFO_FILE}) in the artifact, found "
            f"{len(found)}: was this version registered by Trialgate?"
        )
    return found[0]


class ModelCache:
    """Downloaded versions below ``folder``. Safe for several processes of one machine."""

    def __init__(self, folder: Path, tracking_uri: str, alias: str) -> None:
        self._folder, self._tracking_uri, self._alias = folder, tracking_uri, alias

    def fetch(self, version: ModelVersion, download: Callable[[ModelVersion, Path], None]) -> Path:
        """The saved-model folder of ``version``, downloaded if it is not here yet. Raises what ``download`` does,
        and ModelFolderError if there is no saved model in what it brought."""
        target = self._target(version)
        with self._lock(target):
            if not target.exists():
                with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as temporary:
                    part = Path(temporary) / "artifact"
                    part.mkdir()
                    download(version, part)
                    find_model_folder(part)
                    part.rename(target)
            os.utime(target)  # the newest are kept
        return find_model_folder(target)

    def discard(self, version: ModelVersion) -> None:
        """Removes the copy of a version that did not load: the download may be what is broken."""
        target = self._target(version)
        with self._lock(target):
            shutil.rmtree(target, ignore_errors=True)

    def remember_good(self, version: ModelVersion) -> None:
        """Notes that ``version`` loaded well, and removes versions that nobody is going to need."""
        path = self._last_good_path(version.name)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(asdict(version), file)
        os.replace(file.name, path)
        self._prune(version)

    def last_good(self, name: str) -> ModelVersion | None:
        """The last version that loaded well here and is still here, or None."""
        try:
            version = ModelVersion(**json.loads(self._last_good_path(name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return version if self._target(version).is_dir() else None

    def _prune(self, keep: ModelVersion) -> None:
        kept = self._target(keep)
        others = [path for path in kept.parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in [other for other in others if other != kept][_KEPT_VERSIONS - 1 :]:
            with contextlib.suppress(Timeout), self._lock(path, timeout_s=0.0):
                shutil.rmtree(path, ignore_errors=True)

    def _target(self, version: ModelVersion) -> Path:
        identity = _digest(self._tracking_uri, version.name, version.version, version.source)
        return self._model_folder(version.name) / f"{_file_name(version.version)}-{identity}"

    def _last_good_path(self, name: str) -> Path:
        return self._model_folder(name) / f"last-good-{_digest(self._tracking_uri, name, self._alias)}.json"

    def _model_folder(self, name: str) -> Path:
        folder = self._folder / _file_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _lock(self, target: Path, timeout_s: float = _LOCK_TIMEOUT_S) -> Iterator[None]:
        with FileLock(target.parent / f".{target.name}.lock", timeout=timeout_s):
            yield


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[:60]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
