"""What stands before the gate: a trial's run or a registered version, with everything that scoring it needs."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec

from configs.loading import load_settings
from configs.schema import Settings
from gate.decision import GateUsageError
from gate.registry import get_version, versions
from gate.scoring import ScoringError
from serve_app import mlflow_client as names
from serve_app.inference.folder import ModelFolderError
from serve_app.inference.saved_model import weights_digest
from serve_app.mlflow_client import find_run, is_unreachable, redact
from serve_app.model_source import find_model_folder
from serve_app.refusals import refusal

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model to be judged. ``run_id`` is None when the run that made a registered version is gone; ``run_deleted``:
    it is there, but nothing can be written to it."""

    run_id: str | None
    parent_run_id: str | None
    experiment_id: str | None
    model_uri: str | None
    test_uri: str | None
    test_digest: str | None
    f1_definition: str | None
    version: ModelVersion | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    config_digest: str | None = None
    run_deleted: bool = False

    @property
    def what(self) -> str:
        """How messages call it."""
        return f"version {self.version.version}" if self.version else f"the candidate (run {self.run_id})"

    def effective_settings(self, config: str | None = None, overrides: Sequence[str] = ()) -> Settings:
        """What the gate goes by: the search's own settings, then ``config``, environment and ``overrides``."""
        return load_settings(config, overrides, base=self.settings)


def find_candidate(
    client: MlflowClient, *, run_id: str | None = None, version: str | None = None, model_name: str | None = None
) -> Candidate:
    """The candidate that a run id, or a version of ``model_name``, means. GateUsageError if there is none."""
    if (run_id is None) == (version is None):
        raise GateUsageError("name exactly one candidate: --run-id R or --version N")
    if run_id is not None:
        return _of_run(client, run_id)
    assert version is not None
    assert model_name is not None
    return _of_version(client, model_name, version)


def _of_run(client: MlflowClient, run_id: str) -> Candidate:
    run = find_run(client, run_id)
    if run is None:
        raise GateUsageError(
            f"run '{run_id}' does not exist at {redact(client.tracking_uri)}: "
            "take the id of a trial's or a search's run"
        )
    if run.info.lifecycle_stage != "active":
        raise GateUsageError(f"run '{run_id}' is deleted: restore it in MLflow first")
    kind = run.data.tags.get(names.KIND)
    if kind == names.KIND_SEARCH:
        best = run.data.tags.get(names.BEST_RUN)
        if not best:
            raise GateUsageError(f"search '{run_id}' ({run.info.status}) has no best trial: no trial of it finished")
        trial = find_run(client, best)
        if trial is None or trial.info.lifecycle_stage != "active":
            raise GateUsageError(f"run '{best}', the best trial of search '{run_id}', is deleted or does not exist")
        return _from_trial(client, trial, run)
    if kind != names.KIND_TRIAL:
        raise GateUsageError(
            f"run '{run_id}' is neither a trial nor a search of Trialgate: its tag {names.KIND} is {kind!r}"
        )
    return _from_trial(client, run, None)


def _from_trial(client: MlflowClient, trial: Run, parent: Run | None, version: ModelVersion | None = None) -> Candidate:
    tags = trial.data.tags
    parent_id = tags.get(names.PARENT_RUN)
    if parent is None and parent_id:
        parent = find_run(client, parent_id)
    inherited = {**(parent.data.tags if parent else {}), **tags}
    settings, config_digest = _search_settings(client, parent)
    return Candidate(
        run_id=trial.info.run_id,
        parent_run_id=parent_id,
        experiment_id=trial.info.experiment_id,
        model_uri=tags.get(names.MODEL_URI),
        test_uri=inherited.get(names.TEST_URI),
        test_digest=inherited.get(names.TEST_DIGEST),
        f1_definition=inherited.get(names.F1_DEFINITION),
        version=version,
        settings=settings,
        config_digest=config_digest,
        run_deleted=trial.info.lifecycle_stage != "active",
    )


def _of_version(client: MlflowClient, model_name: str, version: str) -> Candidate:
    found = get_version(client, model_name, version)
    if found is None:
        there = ", ".join(str(known.version) for known in versions(client, model_name)) or "none"
        raise GateUsageError(f"version '{version}' of model '{model_name}' does not exist; there are: {there}")
    run = find_run(client, found.run_id) if found.run_id else None
    if run is not None:
        return _from_trial(client, run, None, found)
    tags = found.tags
    return Candidate(
        run_id=None,
        parent_run_id=None,
        experiment_id=None,
        model_uri=None,
        test_uri=tags.get(names.TEST_URI),
        test_digest=tags.get(names.TEST_DIGEST),
        f1_definition=tags.get(names.F1_DEFINITION),
        version=found,
    )


def _search_settings(client: MlflowClient, parent: Run | None) -> tuple[dict[str, Any], str | None]:
    """The sections of the search's settings that a gate goes by, and the digest of all of them; nothing if the search
    keeps none."""
    if parent is None:
        return {}, None
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="trialgate-settings-") as folder:
        try:
            path = client.download_artifacts(parent.info.run_id, names.SETTINGS_FILE, folder)
            content = Path(path).read_bytes()
            dump = json.loads(content)
            sections = {
                "gate": dump["gate"],
                "serving": {"precision": dump["serving"]["precision"]},
                "tracking": {"model_name": dump["tracking"]["model_name"]},
            }
            return sections, hashlib.sha256(content).hexdigest()
        except (OSError, MlflowException, ValueError, KeyError, TypeError) as error:
            if is_unreachable(error) or refusal(error):
                raise
            logger.warning("the settings of search %s cannot be read, so the defaults apply: %s", parent.info.run_id,
                           error)  # fmt: skip
            return {}, None


def fetch_model(client: MlflowClient, candidate: Candidate, into: Path) -> Path:
    """Copies the candidate's saved-model folder below ``into``: what is scored is what gets registered."""
    if candidate.version is not None:
        return fetch_version(client, candidate.version, into)
    if not candidate.model_uri:
        raise ScoringError(
            f"run {candidate.run_id} has no saved model (tag {names.MODEL_URI}): its trial did not get that far, or "
            "its model was removed because others of its search were better (search.keep_best)"
        )
    target = into / "model"
    try:
        system, path = fsspec.core.url_to_fs(candidate.model_uri)
        if not system.isdir(path):
            raise FileNotFoundError(f"{candidate.model_uri} is not there")
        system.get(path.rstrip("/") + "/", f"{target}/", recursive=True)
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, ConnectionError | TimeoutError) or is_unreachable(error):
            raise
        shutil.rmtree(target, ignore_errors=True)
        raise ScoringError(f"the saved model of {candidate.what} cannot be read: {error}") from error
    return target


def fetch_version(client: MlflowClient, version: ModelVersion, into: Path) -> Path:
    """Downloads a registered version below ``into`` and returns its saved-model folder."""
    uri = f"models:/{version.name}/{version.version}"
    downloaded = _download(client, uri, into / "version", f"the artifact of version {version.version}")
    try:
        return find_model_folder(downloaded)
    except ModelFolderError as error:
        raise ScoringError(f"version {version.version}: {error}") from error


def same_weights(client: MlflowClient, version: ModelVersion, digest: str, into: Path) -> bool:
    """Whether the artifact of ``version`` is there and has the weights digest that its tag says."""
    try:
        return weights_digest(fetch_version(client, version, into)) == digest
    except (ScoringError, ModelFolderError):
        return False


def active_run_id(client: MlflowClient, run_id: str | None) -> str | None:
    """``run_id`` if that run exists and is not deleted, so that something can be written to it."""
    run = find_run(client, run_id) if run_id else None
    return run.info.run_id if run is not None and run.info.lifecycle_stage == "active" else None


def fetch_test_split(client: MlflowClient, candidate: Candidate, into: Path) -> Path:
    """Downloads the candidate's frozen test split below ``into``."""
    if not candidate.test_uri:
        raise ScoringError(f"{candidate.what} has no frozen test split (tag {names.TEST_URI})")
    if not candidate.test_digest:
        raise ScoringError(
            f"{candidate.what} has no test digest (tag {names.TEST_DIGEST}), so nothing says that its test split is "
            "still the one that was frozen: run the search again"
        )
    return _download(client, candidate.test_uri, into / "test", "the frozen test split")


def _download(client: MlflowClient, uri: str, into: Path, what: str) -> Path:
    import mlflow

    into.mkdir(parents=True, exist_ok=True)
    try:
        found = mlflow.artifacts.download_artifacts(
            artifact_uri=uri, dst_path=str(into), tracking_uri=client.tracking_uri, registry_uri=client.tracking_uri
        )
    except Exception as error:  # each kind of storage has errors of its own
        if is_unreachable(error) or refusal(error):
            raise
        raise ScoringError(f"{what} ({uri}) cannot be read: {error}") from error
    return Path(found)
