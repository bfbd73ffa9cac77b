"""The model registry: versions, aliases, registering a saved-model folder as a version, and removing one.

Everything goes through ``MlflowClient``, never through MLflow's global "active run".
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from configs.exit_codes import UsageError
from serve_app import mlflow_client as names
from serve_app.mlflow_client import PREVIOUS, PRODUCTION, is_not_found, is_unreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

REGISTERED_BY: Final = "trialgate.registered_by"  # id of the decision that made the version (or the model)
LOADER: Final = "serve_app.pyfunc_model"
_REQUIREMENTS: Final = ("mlflow", "numpy", "pandas", "safetensors", "tokenizers", "torch")


def find_model(client: MlflowClient, name: str) -> Any | None:
    """The registered model ``name`` with its aliases, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" and not is_unreachable(error):
            return None
        raise


def get_version(client: MlflowClient, name: str, version: str) -> ModelVersion | None:
    """Version ``version`` of model ``name``, or None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        if is_not_found(error):
            return None
        raise


def aliased(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version under ``alias``, or None if no version has it.

    An alias that leads nowhere is not the same as none: UsageError.
    """
    number = aliases(client, name).get(alias)
    return None if number is None else _at_its_end(name, alias, number, get_version(client, name, number))


def _at_its_end(name: str, alias: str, number: str, version: ModelVersion | None) -> ModelVersion:
    if version is None:
        raise UsageError(
            f"the alias '{alias}' of model '{name}' points at version {number}, which does not exist: go back "
            "(python -m gate rollback), or delete the alias in MLflow"
        )
    return version


def holder(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version under ``alias``; None if no version has it, or one that does not exist."""
    number = aliases(client, name).get(alias)
    return None if number is None else get_version(client, name, number)


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Every alias of the model with its version; none if there is no such model."""
    model = find_model(client, name)
    return {alias: str(version) for alias, version in (model.aliases if model else {}).items()}


def versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """Every version of the model, oldest first."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(
            f"name='{name}'", max_results=200, order_by=["version_number ASC"], page_token=token
        )
        found.extend(page)
        token = page.token
        if not token:
            return found


@dataclass(frozen=True)
class State:
    """A registered model at one moment; empty if there is none. ``versions``: oldest first.

    Two are equal if a judgement of the one holds for the other: the same aliases, and the same versions with the same
    ``marks`` of what was decided about each. A promotion and its rollback leave the same aliases, but not the same
    marks.
    """

    name: str
    model: Any | None = field(default=None, compare=False)
    versions: list[ModelVersion] = field(default_factory=list, compare=False)
    aliases: dict[str, str] = field(default_factory=dict)
    marks: list[tuple[str | None, ...]] = field(default_factory=list)

    def version(self, number: str) -> ModelVersion | None:
        """Version ``number``, or None if there is none."""
        return next((version for version in self.versions if str(version.version) == number), None)

    def aliased(self, alias: str) -> ModelVersion | None:
        """As the function ``aliased``."""
        number = self.aliases.get(alias)
        return None if number is None else _at_its_end(self.name, alias, number, self.version(number))

    def with_weights(self, digest: str) -> list[ModelVersion]:
        """The versions whose weights have this digest, oldest first."""
        return [version for version in self.versions if version.tags.get(names.WEIGHTS_DIGEST) == digest]


def state(client: MlflowClient, name: str) -> State:
    """What a judgement rests on, beside the candidate."""
    model = find_model(client, name)
    if model is None:
        return State(name)
    found = versions(client, name)
    return State(
        name,
        model,
        found,
        aliases={alias: str(version) for alias, version in model.aliases.items()},
        marks=[
            (str(version.version), version.tags.get(names.DECISION_ID), version.tags.get(names.ROLLED_BACK))
            for version in found
        ],
    )


def model_names(client: MlflowClient) -> list[str]:
    """Names of the registered models that Trialgate made."""
    found: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(max_results=200, page_token=token)
        found.extend(model.name for model in page if (model.tags or {}).get(names.KIND) == names.KIND_MODEL)
        token = page.token
        if not token:
            return sorted(found)


def refuse_foreign(client: MlflowClient, name: str, known: State | None = None) -> None:
    """UsageError if the registered model ``name`` has versions that are not Trialgate's. An empty one may be ours.

    ``known``: how it stands, if that was read already.
    """
    model = known.model if known else find_model(client, name)
    kind = model.tags.get(names.KIND) if model else names.KIND_MODEL
    if kind != names.KIND_MODEL and (known.versions if known else versions(client, name)):
        raise UsageError(
            f"the registered model '{name}' is another tool's: it has versions, and its tag {names.KIND} is {kind!r}, "
            f"expected '{names.KIND_MODEL}'. Use another tracking.model_name, or set that tag to let Trialgate have it"
        )


def best_previous(client: MlflowClient, name: str, production: str | None) -> ModelVersion | None:
    """The latest earlier production version that is not rolled back, or None."""
    eligible = [version for version in versions(client, name)
                if str(version.version) != production and can_go_back_to(version)]  # fmt: skip
    return max(eligible, key=lambda version: version.tags[names.PRODUCTION_SINCE], default=None)


def can_go_back_to(version: ModelVersion) -> bool:
    """Whether ``rollback`` accepts the version: it was in production and was not itself rolled back."""
    return names.PRODUCTION_SINCE in version.tags and names.ROLLED_BACK not in version.tags


def renew_previous(client: MlflowClient, name: str, production: str) -> dict[str, str]:
    """Lets the alias ``previous`` say what ``best_previous`` says. Returns the aliases that were found."""
    target = best_previous(client, name, production)
    found = aliases(client, name)
    current = found.get(PREVIOUS)
    if target is None and current is not None:
        client.delete_registered_model_alias(name, PREVIOUS)
    elif target is not None and current != str(target.version):
        client.set_registered_model_alias(name, PREVIOUS, str(target.version))
    return found


def register(
    client: MlflowClient,
    name: str,
    folder: Path,
    *,
    run_id: str,
    experiment_id: str,
    decision_id: str,
    tags: dict[str, str],
) -> ModelVersion:
    """Registers the saved-model folder as a new version of ``name``, made if need be.

    Model, logged model and version carry ``decision_id`` (REGISTERED_BY) from the first moment, so that
    ``unregister`` finds whatever a crash left.
    """
    from mlflow.exceptions import MlflowException

    mark = {REGISTERED_BY: decision_id}
    model = find_model(client, name)
    if model is None:
        try:
            client.create_registered_model(name, tags={names.KIND: names.KIND_MODEL, **mark})
        except MlflowException as error:  # somebody else was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    elif names.KIND not in model.tags:  # made by hand and empty, for instance to give rights on it
        client.set_registered_model_tag(name, names.KIND, names.KIND_MODEL)
    logged = client.create_logged_model(experiment_id, name="model", source_run_id=run_id, tags={**tags, **mark})
    with tempfile.TemporaryDirectory(prefix="trialgate-model-") as temporary:
        path = Path(temporary) / "model"
        save_pyfunc(folder, path, run_id=run_id, model_id=logged.model_id)
        client.log_model_artifacts(logged.model_id, str(path))
    client.finalize_logged_model(logged.model_id, "READY")
    return client.create_model_version(
        name, f"models:/{logged.model_id}", run_id=run_id, model_id=logged.model_id, tags={**tags, **mark}
    )


def unregister(client: MlflowClient, name: str, experiment_ids: list[str], decision_id: str) -> list[str]:
    """Removes what ``register`` left for a decision that was not carried out. Returns what was removed, in words.

    A version that was in production at any time, or has an alias, stays, and with it the logged model it is made of.
    """
    removed = []
    model = find_model(client, name)
    if model is not None:
        own = [version for version in versions(client, name) if version.tags.get(REGISTERED_BY) == decision_id]
        kept = {str(version) for version in model.aliases.values()}
        for version in own:
            if names.PRODUCTION_SINCE in version.tags or str(version.version) in kept:
                continue
            client.delete_model_version(name, str(version.version))
            removed.append(f"version {version.version}")
    if experiment_ids:
        in_use = {version.source for version in versions(client, name)} if model is not None else set()
        for logged in client.search_logged_models(experiment_ids, f"tags.`{REGISTERED_BY}` = '{decision_id}'"):
            if f"models:/{logged.model_id}" in in_use:
                continue
            client.delete_logged_model(logged.model_id)
            removed.append(f"logged model {logged.model_id}")
    if model is not None and model.tags.get(REGISTERED_BY) == decision_id and not versions(client, name):
        client.delete_registered_model(name)
        removed.append(f"registered model {name}")
    return removed


def remove(client: MlflowClient, name: str, version: str) -> None:
    """Deletes a version and, first, the logged model that the gate made for it. Doing it again changes nothing.

    MLflow keeps the files of a deleted logged model until ``mlflow gc``.
    """
    from mlflow.exceptions import MlflowException

    found = get_version(client, name, version)
    if found is None:
        return
    logged = (found.source or "").removeprefix("models:/")
    users = [version for version in versions(client, name) if version.source == found.source]
    if REGISTERED_BY in found.tags and logged.startswith("m-") and len(users) == 1:
        try:
            client.delete_logged_model(logged)
        except MlflowException as error:
            if not is_not_found(error):
                raise
    client.delete_model_version(name, version)


def save_pyfunc(folder: Path, path: Path, *, run_id: str | None = None, model_id: str | None = None) -> None:
    """Writes an MLflow model to ``path`` whose ``data/`` holds the saved-model folder as it is. Nothing is pickled."""
    import mlflow.pyfunc
    from mlflow.models import Model

    with warnings.catch_warnings():
        # MLflow asks for an input example, with which it would load and run the model while logging it.
        warnings.filterwarnings("ignore", message=".*input example.*")
        mlflow.pyfunc.save_model(
            path=str(path),
            loader_module=LOADER,
            data_path=str(folder),
            mlflow_model=Model(run_id=run_id, model_id=model_id, model_uuid=model_id),
            signature=signature(),
            pip_requirements=requirements(),
        )


def signature() -> ModelSignature:
    """One column of texts in; ``label``, ``score`` and ``probabilities`` (class name to probability) out.

    The input column has no name, because MLflow then takes plain lists as well as a column of any name.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "score"),
                ColSpec(Map(DataType.double), "probabilities"),
            ]
        ),
    )


def requirements() -> list[str]:
    """Exact versions of the packages that the model was scored with. Trialgate itself is on no package index."""
    # "2.13.0+cpu" names a build that the package index does not have.
    return [f"{package}=={importlib.metadata.version(package).partition('+')[0]}" for package in _REQUIREMENTS]


def promote_alias(client: MlflowClient, name: str, version: str, alias: str = PRODUCTION) -> None:
    """Gives ``alias`` to ``version``. The one call that users notice; everything before it can be undone."""
    client.set_registered_model_alias(name, alias, version)
