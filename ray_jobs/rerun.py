"""An earlier run again: one trial with its parameters, seeds, data and threads, or a whole search with its settings.

A trial's F1 repeats to the last digit on the same type of processor with the same versions. What a search finds
repeats only with one trial at a time, because the sampler learns from trials in the order in which they end.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.loading import ConfigError, load_settings, stored_values
from configs.schema import Settings
from ray_jobs.command import say
from ray_jobs.data.prepare import Dataset
from ray_jobs.parent_run import TRAIN_DIGEST, VALIDATION_DIGEST, git_revision, without_credentials
from serve_app import mlflow_client as names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

REPEATS = "trialgate.repeats"
PRECISION = "trialgate.precision"
PROCESSOR = "trialgate.processor"
_DIGESTS = {"training": TRAIN_DIGEST, "validation": VALIDATION_DIGEST, "test": names.TEST_DIGEST}
# What a trial holds, and with it the number of its threads and the order of its sums.
_RESOURCES = ("cpus_per_trial", "gpus_per_trial", "workers_per_trial")
# Where things lie and how many run at once decides nothing, and an earlier search's name is taken.
_OF_THE_PLACE = ("storage", "name", "max_concurrent")


@dataclass(frozen=True)
class EarlierRun:
    """A run that is to be repeated. ``settings``: of the repetition. ``trial``: None when the run is a search's."""

    run_id: str
    tags: Mapping[str, str]
    settings: Settings
    trial: Run | None

    def check_data(self, dataset: Dataset) -> None:
        """Raises ConfigError when the data are not what the run had, by their digests."""
        now = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
        for split, tag in _DIGESTS.items():
            before, found = self.tags.get(tag), now[split].digest
            if before != found:
                raise ConfigError(f"--from-run {self.run_id}: the {split} split is not what that run had: its digest "
                                  f"was {before}, found {found}; bring the same data back, or begin a new search "
                                  "with --config")  # fmt: skip

    def compare(self, client: MlflowClient, parent_run_id: str, run_id: str) -> bool | None:
        """Notes on ``parent_run_id`` what it repeats, and says whether the trial ``run_id`` did the same as this one.

        None when there is nothing to compare: this run is a search's, or had no epoch.
        """
        client.set_tag(parent_run_id, REPEATS, self.run_id)
        if self.trial is None:
            return None
        before, now = _curve(client, self.run_id), _curve(client, run_id)
        different = [epoch for epoch in sorted(before.keys() & now.keys()) if before[epoch] != now[epoch]]
        if different:
            epoch = different[0]
            say(f"not the same as run {self.run_id}: validation F1 of epoch {epoch} was {before[epoch]!r}, is "
                f"{now[epoch]!r}{self._suspects(client.get_run(run_id).data.tags)}")  # fmt: skip
            return False
        shared = before.keys() & now.keys()
        if not shared:
            say(f"run {self.run_id} had no epoch to compare with")
            return None
        further = f"; that one ended there, this one went on to epoch {max(now)}" if now.keys() > before.keys() else ""
        say(f"the same validation F1 as run {self.run_id}, to the last digit, in epochs 1 to {max(shared)}{further}")
        return True

    def _suspects(self, now: Mapping[str, str]) -> str:
        told = {PROCESSOR: "processor", PRECISION: "precision", "trialgate.git_revision": "code"}
        found = [f"{what} {self.tags.get(tag)} then, {now.get(tag)} now" for tag, what in told.items()
                 if self.tags.get(tag) != now.get(tag)]  # fmt: skip
        return f" ({'; '.join(found)})" if found else ""


def earlier_run(run_id: str, config: str | None = None, overrides: Sequence[str] = ()) -> EarlierRun:
    """The run ``run_id`` with the settings that repeat it, ``config``, environment and ``overrides`` over them.

    What these change in the result is said. Raises ConfigError when there is no such run or it keeps no settings.
    """
    client = names.connect(load_settings(config, overrides).tracking)
    run = _get_run(client, run_id)
    kind, parent_id = run.data.tags.get(names.KIND), run.data.tags.get(names.PARENT_RUN)
    if kind == names.KIND_SEARCH:
        parent, trial = run, None
    elif kind == names.KIND_TRIAL and parent_id:
        parent, trial = _get_run(client, parent_id), run
    else:
        raise ConfigError(f"--from-run {run_id}: it is neither a trial nor a search of Trialgate: its tag {names.KIND} "
                          f"is {kind!r}")  # fmt: skip
    base = stored_values(_stored_settings(client, parent.info.run_id), f"{names.SETTINGS_FILE} of {parent.info.run_id}")
    before = Settings.model_validate(base)
    if trial is not None:
        parameters = _parameters(before, trial.data.params)
        space = {key: {"type": "choice", "values": [value]} for key, value in parameters.items()}
        resources = {key: base["search"][key] for key in (*_RESOURCES, "max_failures")}
        base["search"] = {**resources, "space": space, "trials": 1, "scheduler": "none"}
    expected = Settings.model_validate(base)
    settings = load_settings(config, overrides, base=_without_place(base))
    for line in _changes(expected, settings):
        say(f"not as run {run_id} had it: {line}; the result will differ")
    revision = git_revision()
    if parent.data.tags.get("trialgate.git_revision") != revision:
        say(f"run {run_id} was made by code {parent.data.tags.get('trialgate.git_revision')}, this is {revision}")
    return EarlierRun(run_id, {**parent.data.tags, **run.data.tags}, settings, trial)


def _get_run(client: MlflowClient, run_id: str) -> Run:
    run = names.find_run(client, run_id)
    if run is None:
        raise ConfigError(f"--from-run {run_id}: there is no such run at {names.redact(client.tracking_uri)}")
    if run.info.lifecycle_stage != "active":
        raise ConfigError(f"--from-run {run_id}: run {run.info.run_id} is deleted: restore it in MLflow first")
    return run


def _stored_settings(client: MlflowClient, parent_run_id: str) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="tg-settings-") as folder:
        try:
            path = client.download_artifacts(parent_run_id, names.SETTINGS_FILE, folder)
            return dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, MlflowException, ValueError) as error:
            if names.is_unreachable(error):
                raise
            raise ConfigError(f"search {parent_run_id} has no readable {names.SETTINGS_FILE} among its artifacts: "
                              f"{error}") from None  # fmt: skip


def _parameters(settings: Settings, logged: Mapping[str, str]) -> dict[str, Any]:
    """A trial's parameters as the values they were: MLflow keeps texts, which for numbers are exact."""
    parameters: dict[str, Any] = {}
    for key, text in logged.items():
        dimension = settings.search.space.get(key)
        if dimension is None:
            raise ConfigError(f"the trial's parameter {key} is not in the search.space of its search")
        if dimension.type == "choice":
            parameters[key] = next(value for value in dimension.values if str(value) == text)
        else:
            parameters[key] = int(text) if dimension.type == "int" else float(text)
    return parameters


def _without_place(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without where the earlier search kept its things: a credential is missing there too."""
    kept = {key: value for key, value in values.items() if key != "home"}
    kept["search"] = {key: value for key, value in values["search"].items() if key not in ("storage", "name")}
    kept["tracking"] = {key: value for key, value in values["tracking"].items() if key != "uri"}
    kept["serving"] = {key: value for key, value in values["serving"].items() if key != "cache_dir"}
    return kept


def _changes(before: Settings, now: Settings) -> list[str]:
    """The settings that decide the result and differ."""
    old, new = _flat(without_credentials(before)), _flat(without_credentials(now))
    skipped = tuple(f"search.{key}" for key in _OF_THE_PLACE)
    return [
        f"{key} {old.get(key)} is {new.get(key)} now"
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[0] in ("data", "model", "training", "search")
        and key not in skipped
        and old.get(key) != new.get(key)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _curve(client: MlflowClient, run_id: str) -> dict[int, float]:
    return {point.step: point.value for point in client.get_metric_history(run_id, "validation_f1")}
