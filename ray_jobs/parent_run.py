"""A search in MLflow: its run, above those of its trials, and the run that keeps its test split."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.loading import ConfigError
from configs.schema import Settings
from ray_jobs.data.freeze import write_test_parquet
from ray_jobs.data.prepare import Dataset
from serve_app import mlflow_client as names

if TYPE_CHECKING:
    from mlflow import MlflowClient

TRAIN_DIGEST = "trialgate.train_digest"
VALIDATION_DIGEST = "trialgate.validation_digest"


def start_parent_run(
    client: MlflowClient, experiment_id: str, name: str, settings: Settings, tags: Mapping[str, str], *, resume: bool
) -> str:
    """The search's parent run, with the settings as an artifact: a new one, or with ``resume`` the earlier attempt's.

    Raises ConfigError when the name is taken, when the earlier attempt still runs, or when its data were others.
    """
    found = client.search_runs(
        [experiment_id],
        f"tags.`{names.KIND}` = '{names.KIND_SEARCH}' and tags.`{names.SEARCH_NAME}` = '{name}'",
    )
    # MLflow may have made an empty double beside it, see ``Tracker.remove_doubles``, which nobody kept alive.
    earlier = max(found, key=lambda run: float(run.data.tags.get(names.HEARTBEAT, 0)), default=None)
    if earlier is not None and not resume:
        raise ConfigError(f"search.name '{name}' is taken by run {earlier.info.run_id}: choose another name, or go on "
                          f"with that search by --resume {name}")  # fmt: skip
    if earlier is not None:
        _refuse_other_data(earlier.data.tags, tags, name)
        if earlier.info.status == "RUNNING":
            raise ConfigError(f"search {name} is still running (run {earlier.info.run_id})")
    tags = {**tags, **names.owner_tags(), names.KIND: names.KIND_SEARCH, names.SEARCH_NAME: name}
    if earlier is not None:
        run_id = earlier.info.run_id
        for tag in (names.ENDING, names.OUTCOME):  # how it had ended before
            if tag in earlier.data.tags:
                client.delete_tag(run_id, tag)
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        client.update_run(run_id, status="RUNNING")
        return run_id
    run_id = client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
    client.log_dict(run_id, without_credentials(settings), names.SETTINGS_FILE)
    return run_id


def without_credentials(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, with the tracking address as messages show it: stored files outlive passwords."""
    values = settings.model_dump(mode="json")
    values["tracking"]["uri"] = names.redact(values["tracking"]["uri"])
    return values


def _refuse_other_data(before: Mapping[str, str], now: Mapping[str, str], name: str) -> None:
    for tag in (names.TEST_DIGEST, TRAIN_DIGEST, VALIDATION_DIGEST):
        if tag in before and before[tag] != now[tag]:
            raise ConfigError(f"--resume {name}: the data are not what this search began with ({tag} was "
                              f"{before[tag][:12]}, is {now[tag][:12]}); begin a new search")  # fmt: skip


def freeze_test_split(client: MlflowClient, experiment_id: str, dataset: Dataset) -> str:
    """Stores the test split, once per digest, under a dataset run of its own. Returns its ``runs:/`` URI."""
    digest = dataset.test.digest
    found = client.search_runs(
        [experiment_id],
        f"tags.`{names.KIND}` = '{names.KIND_DATASET}' and tags.`{names.TEST_DIGEST}` = '{digest}' "
        "and attributes.status = 'FINISHED'",
        max_results=1,
    )
    if found:
        return f"runs:/{found[0].info.run_id}/{names.TEST_FILE}"
    tags = {names.KIND: names.KIND_DATASET, names.TEST_DIGEST: digest, **names.owner_tags()}
    run_id = client.create_run(experiment_id, tags=tags, run_name=f"test-split-{digest[:12]}").info.run_id
    with tempfile.TemporaryDirectory(prefix="tg-test-") as folder:
        path = Path(folder) / names.TEST_FILE
        write_test_parquet(dataset.test, dataset.label_names, path)
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, status="FINISHED")
    return f"runs:/{run_id}/{names.TEST_FILE}"


def end_orphans(client: MlflowClient, experiment_id: str) -> list[str]:
    """Ends the runs whose process is gone (KILLED), trials with their search. Never a living one. Returns their ids."""
    running = client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=1000)
    owners = [run for run in running if run.data.tags.get(names.KIND) in (names.KIND_SEARCH, names.KIND_DATASET)]
    dead = {run.info.run_id for run in owners if names.is_orphan(run.data.tags)}
    for run in running:
        parent = run.data.tags.get(names.PARENT_RUN)
        if parent is not None and run.data.tags.get(names.KIND) == names.KIND_TRIAL and _is_over(client, parent, dead):
            dead.add(run.info.run_id)
    for run_id in sorted(dead):
        client.set_tag(run_id, names.OUTCOME, "killed")
        client.set_terminated(run_id, status="KILLED")
    return sorted(dead)


def _is_over(client: MlflowClient, parent: str, dead: Iterable[str]) -> bool:
    return parent in dead or client.get_run(parent).info.status != "RUNNING"


def git_revision() -> str:
    """The commit of the working directory, with ``-dirty`` where files differ from it; ``unknown`` outside git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return described.stdout.strip()
