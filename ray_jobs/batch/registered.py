"""Which registered version a batch job scores with."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.exit_codes import UsageError
from configs.schema import Settings
from serve_app.mlflow_client import is_not_found
from serve_app.model_source import ModelVersion

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow import MlflowClient


@dataclass(frozen=True)
class ModelChoice:
    """What was asked for: the model under an ``alias``, or its ``version`` (a number); the other is empty."""

    name: str
    alias: str
    version: str

    @classmethod
    def of(cls, settings: Settings) -> ModelChoice:
        """What ``batch_score.model`` says, or what is served."""
        text = settings.batch_score.model
        if text is None:
            return cls(settings.tracking.model_name, settings.serving.alias, "")
        name, separator, alias = text.partition("@")
        if separator:
            return cls(name, alias, "")
        name, _, version = text.partition("/")
        return cls(name, "", version)

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}" if self.alias else f"{self.name}/{self.version}"


def find_version(client: MlflowClient, choice: ModelChoice) -> ModelVersion:
    """The version that is meant now. Raises UsageError when there is no such model, alias or version."""
    from mlflow.exceptions import MlflowException

    try:
        if choice.alias:
            return ModelVersion.of(client.get_model_version_by_alias(choice.name, choice.alias))
        return ModelVersion.of(client.get_model_version(choice.name, choice.version))
    except MlflowException as error:
        if not is_not_found(error):
            raise
    raise UsageError(f"--model {choice}: {_missing(client, choice)}")


def _missing(client: MlflowClient, choice: ModelChoice) -> str:
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(choice.name)
    except MlflowException as error:
        if not is_not_found(error):
            raise
        names = [model.name for model in client.search_registered_models()]
        return f"there is no registered model '{choice.name}'{_nearest(choice.name, names, 'registered are')}"
    if choice.alias:
        return f"the model has no alias '{choice.alias}'{_nearest(choice.alias, model.aliases, 'its aliases are')}"
    versions = [str(version.version) for version in client.search_model_versions(f"name = '{choice.name}'")]
    return f"the model has no version {choice.version}; its versions are {', '.join(sorted(versions, key=int))}"


def _nearest(wanted: str, names: Iterable[str], introduction: str) -> str:
    names = sorted(names)
    near = difflib.get_close_matches(wanted, names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; {introduction} {', '.join(names[:20])}" if names else "; there is none at all"
