"""From an alias in the registry to a saved-model folder on this machine.

``RegistryAlias`` asks MLflow which version is meant and downloads it; ``ModelCache`` keeps downloads that are whole,
shared by all replicas of a machine: a download goes to a temporary name under a file lock and is renamed when it is
complete. The cache also remembers the last two versions that loaded well, keeps those and nothing else, and a new
replica can start from them while MLflow is down or the version under the alias is broken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from filelock import FileLock, Timeout

from configs.schema import TrackingConfig
from serve_app.inference.folder import INFO_FILE, ModelFolderError
from serve_app.mlflow_client import VERSION_F1, WEIGHTS_DIGEST, TrackingUnavailable, connect, is_not_found, redact
from serve_app.refusals import refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as RegisteredVersion


_KEPT_VERSIONS = 2  # of those that loaded well, per alias: the served one and the one before
_MLFLOW_NOTE = "registered_model_meta"  # what MLflow adds to every download, even to an empty one
_MOST_OF_A_REASON = 600  # characters
_LOCK_TIMEOUT_S = 600.0  # another replica may be downloading gigabytes


@dataclass(frozen=True)
class ModelVersion:
    """A registered version: name, version and source say which.

    ``f1``: the gate's score. ``weights_digest``: what the gate scored, or what loaded well here. None: nobody said.
    """

    name: str
    version: str
    source: str  # what the registry says the artifact is; tells apart a version that was deleted and made anew
    run_id: str | None = field(default=None, compare=False)
    f1: float | None = field(default=None, compare=False)
    weights_digest: str | None = field(default=None, compare=False)

    @classmethod
    def of(cls, found: RegisteredVersion) -> ModelVersion:
        """MLflow's record of a version."""
        return cls(
            name=found.name,
            version=str(found.version),
            source=f"{found.source}@{found.creation_timestamp}",
            run_id=found.run_id or None,
            f1=_number(found.tags.get(VERSION_F1)),
            weights_digest=found.tags.get(WEIGHTS_DIGEST) or None,
        )


@dataclass(frozen=True)
class Copy:
    """A saved-model ``folder`` on this machine. ``fresh``: downloaded by the call that gave it."""

    folder: Path
    fresh: bool


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
            if is_not_found(error):  # no such model, or no such alias
                return None
            raise self._unavailable(error) from error
        except Exception as error:
            raise self._unavailable(error) from error
        return ModelVersion.of(found)

    def download(self, version: ModelVersion, into: Path) -> None:
        """Writes the version's artifact below ``into``. Raises OSError when it is not there or does not come, also for
        paths that lead out of the artifact or of ``into``, which MLflow refuses."""
        uri = self._connected().tracking_uri  # as configured, but without user and password
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow.artifacts

        try:
            mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{version.name}/{version.version}",
                dst_path=str(into),
                tracking_uri=uri,
                registry_uri=uri,
            )
        except Exception as error:
            raise OSError(f"the artifact of version {version.version} does not come: {_reason(error)}") from error
        if not {path.name for path in into.iterdir()} - {_MLFLOW_NOTE}:  # a store that is away lists nothing
            raise FileNotFoundError(
                f"nothing is stored as the artifact of version {version.version} ({version.source}): bring its "
                "artifact store back, or move the alias"
            )

    def _connected(self) -> MlflowClient:
        if self._client is None:
            self._client = connect(self._tracking)
        return self._client

    def _unavailable(self, error: Exception) -> TrackingUnavailable:
        return TrackingUnavailable(
            f"the registry at {redact(self._tracking.uri or '')} does not answer: {_reason(error)}"
        )


def find_model_folder(downloaded: Path) -> Path:
    """The one saved-model folder below ``downloaded``. Raises ModelFolderError if there is none, or several."""
    found = sorted(path.parent for path in downloaded.rglob(INFO_FILE))
    if len(found) != 1:
        raise ModelFolderError(
            f"expected one saved model (a folder with {INFO_FILE}) in the artifact, found "
            f"{len(found)}: was this version registered by Trialgate?"
        )
    return found[0]


class HasDigest(Protocol):
    """An engine, wherever it computes."""

    @property
    def weights_digest(self) -> str:
        """Of the folder that it was loaded from."""


Verifiable = TypeVar("Verifiable", bound=HasDigest)


def load_verified(
    cache: ModelCache, version: ModelVersion, download: Callable[[ModelVersion, Path], None],
    load: Callable[[Path], Verifiable],
) -> Verifiable:  # fmt: skip
    """The engine of the copy on this machine, compared with the digest of what the gate scored, or else of what loaded
    well before. A copy that is broken is taken anew, once, if it was there before.

    Raises ModelFolderError for a version that is broken itself, OSError when it cannot be had, what ``load`` raises.
    """
    damage: ModelFolderError | None = None
    while True:
        try:
            copy = cache.fetch(version, download)
        except Exception as error:
            if damage is None:
                raise
            raise OSError(f"the copy here is broken ({damage}) and cannot be downloaded anew: {error}") from error
        try:
            engine = load(copy.folder)
            _require_digest(cache, version, copy, engine.weights_digest)
        except (ModelFolderError, FileNotFoundError) as error:  # others on this machine tidy the cache
            removed = cache.discard(version, copy)
            if damage is not None or (copy.fresh and removed):
                raise
            damage = ModelFolderError(str(error))
        else:
            return engine


def _require_digest(cache: ModelCache, version: ModelVersion, copy: Copy, found: str) -> None:
    expected = version.weights_digest
    if expected is None and not copy.fresh:
        loaded_well = [good.weights_digest for good in cache.good(version.name) if good == version]
        expected = next(iter(loaded_well), None)
    if expected is not None and found != expected:
        raise ModelFolderError(
            f"{copy.folder} has the weights digest {found[:16]}..., expected {expected[:16]}..., which was scored "
            "or loaded well before: its files have been changed"
        )


class ModelCache:
    """Downloaded versions below ``folder``. Safe for several processes of one machine."""

    def __init__(self, folder: Path, tracking_uri: str, alias: str) -> None:
        self._folder, self._tracking_uri, self._alias = folder, tracking_uri, alias

    def fetch(self, version: ModelVersion, download: Callable[[ModelVersion, Path], None]) -> Copy:
        """The copy of ``version``, downloaded if it is not here yet. Raises what ``download`` does, and
        ModelFolderError if what it brought is no saved model, or has symbolic links."""
        target = self._target(version)
        part = _part_of(target)
        with self._lock(target):
            with contextlib.suppress(ModelFolderError):
                return Copy(find_model_folder(target), fresh=False)
            for left_over in (part, target):  # of a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            try:
                into = part / uuid.uuid4().hex  # tells this copy from others of the same version, see discard
                into.mkdir(parents=True)
                download(version, into)
                _refuse_links(into)
                find_model_folder(into)
                part.rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
            return Copy(find_model_folder(target), fresh=True)

    def discard(self, version: ModelVersion, copy: Copy) -> bool:
        """Removes a copy that did not load; False if it was gone, so that another process may have a better one."""
        target = self._target(version)
        with self._lock(target):
            if not copy.folder.exists():
                return False
            shutil.rmtree(target, ignore_errors=True)
        return True

    def remember_good(self, version: ModelVersion) -> None:
        """Notes that ``version`` loaded well, and removes what nobody is going to need."""
        path = self._good_path(version.name)
        with self._lock(path):
            versions = [version, *(other for other in self._noted(version.name) if other != version)][:_KEPT_VERSIONS]
            notes = [{"copy": self._target(one).name, "version": asdict(one)} for one in versions]
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(notes), encoding="utf-8")
            os.replace(temporary, path)
        self.tidy(version.name)

    def good(self, name: str) -> list[ModelVersion]:
        """The versions that loaded well here and are still here, the last one first."""
        return [version for version in self._noted(name) if self._target(version).is_dir()]

    def tidy(self, name: str) -> None:
        """Removes copies that did not load well lately, and what killed processes left, unless someone is at it."""
        folder = self._model_folder(name)
        kept = {note["copy"] for path in folder.glob("good-*.json") for note in _notes(path)}  # of every alias
        for target in {_target_of(path) for path in folder.iterdir() if path.is_dir() or path.suffix == ".lock"}:
            if target.name in kept or target.suffix == ".json":
                continue
            with contextlib.suppress(Timeout), self._lock(target, timeout_s=0.0):
                for path in (target, _part_of(target)):
                    shutil.rmtree(path, ignore_errors=True)
                _lock_of(target).unlink(missing_ok=True)  # whoever waits for it takes a new one

    def _noted(self, name: str) -> list[ModelVersion]:
        try:
            return [ModelVersion(**note["version"]) for note in _notes(self._good_path(name))]
        except TypeError:  # of another release
            return []

    def _target(self, version: ModelVersion) -> Path:
        identity = _digest(self._tracking_uri, version.name, version.version, version.source)
        return self._model_folder(version.name) / f"{_file_name(version.version)}-{identity}"

    def _good_path(self, name: str) -> Path:
        return self._model_folder(name) / f"good-{_digest(self._tracking_uri, name, self._alias)}.json"

    def _model_folder(self, name: str) -> Path:
        folder = self._folder / _file_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def _lock(self, target: Path, timeout_s: float = _LOCK_TIMEOUT_S) -> Iterator[None]:
        with FileLock(_lock_of(target), timeout=timeout_s):
            yield


def _notes(path: Path) -> list[dict[str, Any]]:
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return notes if isinstance(notes, list) else []


def _refuse_links(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise ModelFolderError(
                f"the artifact has a symbolic link, {path.relative_to(folder)}, and links are not followed: register "
                "the files themselves"
            )


def _part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _target_of(path: Path) -> Path:
    """Undoes the two above."""
    return path.with_name(path.name.removeprefix(".").removesuffix(".part").removesuffix(".lock"))


def _reason(error: Exception) -> str:
    """In one line: MLflow's first one often says only that something failed."""
    said = " ".join(str(error).split()) or type(error).__name__
    return refusal(error) or (f"{said[:_MOST_OF_A_REASON]} ..." if len(said) > _MOST_OF_A_REASON else said)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[:60]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
