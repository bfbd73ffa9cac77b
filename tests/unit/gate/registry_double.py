"""The part of MLflow's registry that the lease stands on, in memory, with the numbers of versions as its stores give
them: one more than the highest that ever was."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST


@dataclass
class Version:
    """A registered version."""

    name: str
    version: str
    tags: dict[str, str]


@dataclass
class Model:
    """A registered model."""

    name: str
    tags: dict[str, str]
    aliases: dict[str, str] = field(default_factory=dict)
    creation_timestamp: int = 0


class Registry:
    """Stands for ``MlflowClient``. ``before`` is called with the name of every method that is about to run."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.versions: dict[str, Version] = {}
        self.taken = 0  # numbers of versions that were ever given
        self.made = 0  # registered models that ever were: the time, in effect
        self.may_delete = True
        self.before: Callable[[str], None] = lambda method: None

    def get_registered_model(self, name: str) -> Model:
        self.before("get_registered_model")
        if name not in self.models:
            raise MlflowException("no such model", RESOURCE_DOES_NOT_EXIST)
        return self.models[name]

    def create_registered_model(self, name: str, tags: dict[str, str], description: str) -> None:
        self.before("create_registered_model")
        if name in self.models:
            raise MlflowException("exists", RESOURCE_ALREADY_EXISTS)
        self.made += 1
        self.models[name] = Model(name, tags, creation_timestamp=self.made)

    def create_model_version(self, name: str, source: str, tags: dict[str, str], await_creation_for: int) -> Version:
        self.before("create_model_version")
        self.get_registered_model(name)
        self.taken += 1
        self.versions[str(self.taken)] = Version(name, str(self.taken), dict(tags))
        return self.versions[str(self.taken)]

    def get_model_version(self, name: str, version: str) -> Version:
        self.before("get_model_version")
        if version not in self.versions:
            raise MlflowException("no such version", RESOURCE_DOES_NOT_EXIST)
        return self.versions[version]

    def set_model_version_tag(self, name: str, version: str, key: str, value: str) -> None:
        self.before("set_model_version_tag")
        self.get_model_version(name, version).tags[key] = value

    def delete_model_version(self, name: str, version: str) -> None:
        self.before("delete_model_version")
        self.get_model_version(name, version)
        if not self.may_delete:
            raise MlflowException("Permission denied", PERMISSION_DENIED)
        del self.versions[version]

    def search_model_versions(self, condition: str, max_results: int, order_by: list[str]) -> list[Any]:
        self.before("search_model_versions")
        found = re.fullmatch(r"name='(.+)' and tags\.`(.+)` = '(.+)'", condition)
        assert found is not None
        assert order_by == ["version_number ASC"]
        matching = [version for version in self.versions.values() if version.tags.get(found[2]) == found[3]]
        return sorted(matching, key=lambda version: int(version.version))[:max_results]
