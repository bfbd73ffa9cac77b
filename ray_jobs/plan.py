"""What a search is about to do: checked before anything is written, and with ``--dry-run`` told instead of done.

python -m ray_jobs.search --config FILE --dry-run
python -m ray_jobs.pipeline --config FILE --dry-run
"""

from __future__ import annotations

import datetime
import json
import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec

from configs.loading import ConfigError
from configs.schema import Settings
from configs.search import SearchConfig
from ray_jobs import disk, parent_run
from ray_jobs.cluster import arithmetic, concurrent_trials, connected, living_nodes, local_resources, starts_locally
from ray_jobs.command import StorageUnavailable, say
from ray_jobs.data.prepare import Dataset, prepare
from ray_jobs.history import read_search
from ray_jobs.rerun import EarlierRun
from ray_jobs.tokens import tokenise
from ray_jobs.trial import SearchData, count_parameters
from ray_jobs.warm_start import EarlierTrials, earlier_trials, kept
from serve_app import mlflow_client
from serve_app.refusals import storage_problem

if TYPE_CHECKING:
    from mlflow import MlflowClient

SETTINGS_FILE = "settings.json"
# What a search that goes on must share with its beginning.
_FIXED_SECTIONS = ("data", "model", "training")
_FIXED_SEARCH = (
    "space seed sampler startup_trials candidates population scheduler grace_epochs reduction_factor minimum_trials "
    "objectives warm_start"
).split()


@dataclass(frozen=True)
class Beginning:
    """A search that may begin or go on. ``storage``: its folder or URL. ``data``: ``dataset``'s splits as tokens."""

    name: str
    storage: str
    dataset: Dataset
    data: SearchData
    goes_on: bool


def begin(settings: Settings, resume: str | None = None, repeats: EarlierRun | None = None) -> Beginning:
    """Names a search, or takes up the one of the name ``resume``, and prepares its data. Writes nothing.

    ``repeats``: the run whose data these must be. Raises ConfigError, DataError, StorageUnavailable.
    """
    started = datetime.datetime.now(datetime.UTC)
    name = resume or settings.search.name or f"search-{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if settings.search.storage is None:
        raise ConfigError("search.storage is not set, and there is no home folder that the cluster shares: set "
                          "search.storage (or home) to an absolute path or URL that every node can reach")  # fmt: skip
    storage = f"{settings.search.storage}/{name}"
    if not settings.search.space and settings.search.trials > 1:
        raise ConfigError(f"search.space is empty, so all {settings.search.trials} trials would be the same: "
                          "name what to search, or set search.trials=1")  # fmt: skip
    check_name(storage, name, resume, settings)
    dataset = prepare(settings.data, say)
    for line in dataset.report.lines():
        say(f"  {line}")
    if repeats is not None:
        repeats.check_data(dataset)
    return Beginning(name, storage, dataset, tokenise(settings, dataset), goes_on=resume is not None)


def known_beforehand(client: MlflowClient, search: SearchConfig, beginning: Beginning) -> EarlierTrials:
    """The earlier trials that the sampler learns from; those of a search that goes on are what it began with.

    Raises ConfigError, StorageUnavailable.
    """
    if beginning.goes_on:
        return kept(beginning.storage, search)
    digest, f1_key = beginning.dataset.validation.digest, beginning.dataset.f1.key
    return earlier_trials(client, search, name=beginning.name, validation_digest=digest, f1_key=f1_key)


def check_name(storage: str, name: str, resume: str | None, settings: Settings) -> None:
    """Refuses to begin a search that exists, and to go on with one that does not or that had other settings."""
    try:
        filesystem, path = fsspec.core.url_to_fs(storage)
        exists = filesystem.exists(f"{path}/{SETTINGS_FILE}")
        before = json.loads(filesystem.cat_file(f"{path}/{SETTINGS_FILE}")) if exists else {}
    except (ValueError, ImportError) as error:
        raise ConfigError(f"search.storage {storage} cannot be used: {error}") from error
    except Exception as error:  # every store has exceptions of its own for missing credentials and hosts
        raise StorageUnavailable(
            f"search.storage {storage} cannot be read: {storage_problem(storage, error)}"
        ) from error
    if resume is not None and not exists:
        raise ConfigError(f"--resume {resume}: there is no search of that name in {storage.removesuffix('/' + name)}")
    if resume is None and exists:
        raise ConfigError(f"search.name '{name}' is taken by an earlier search in {storage}: choose another name, or "
                          f"go on with that one by --resume {name}")  # fmt: skip
    if resume is not None:
        now = parent_run.without_credentials(settings)
        changed = [section for section in _FIXED_SECTIONS if before.get(section) != now[section]]
        fixed = [key for key in _FIXED_SEARCH if before.get("search", {}).get(key) != now["search"][key]]
        if changed or fixed:
            what = ", ".join([*changed, *(f"search.{key}" for key in fixed)])
            raise ConfigError(f"--resume {name}: settings differ from those it began with ({what}): use its own "
                              f"(they are in {storage}/{SETTINGS_FILE}), or begin a new search")  # fmt: skip


def dry_run(
    settings: Settings, resume: str | None = None, repeats: EarlierRun | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What the search would do, as a JSON document and in lines for people. No trial starts and nothing is written.

    Raises what the search would raise before its first trial.
    """
    beginning = begin(settings, resume, repeats)
    search, storage, train = settings.search, beginning.storage, beginning.data.train
    tracked = _tracked(settings, beginning)
    concurrent, room = _room(settings)
    parameters = count_parameters(settings, beginning.data)
    needed = disk.needed_bytes(parameters, search, concurrent)
    free = disk.check_room(storage, needed)
    over = _over(storage, beginning.name) if resume else 0
    trials, epochs = max(0, search.trials - over), settings.largest("training.epochs")
    tokens, batch = int(train.tokens.lengths.sum()), settings.training.batch_size
    found = {
        "dry_run": True,
        "search": beginning.name,
        "trials": trials,
        "concurrent_trials": concurrent,
        "epochs": trials * epochs,
        "tokens": trials * epochs * tokens,
        "parameters": parameters,
        "disk_bytes": needed,
        "storage": storage,
        "tracking_uri": mlflow_client.redact(settings.tracking.uri or ""),
        "experiment": settings.tracking.experiment,
        "data": beginning.dataset.report.as_dict(),
    }
    stopping = "all run to their end" if search.scheduler == "none" else f"{search.scheduler} stops weak ones early"
    lines = [
        f"search {beginning.name}: {trials} trials{f' beside the {over} that are over' if resume else ''}",
        f"  each of at most {epochs} epochs, {found['epochs']:,} in all: {stopping}",
        f"  an epoch: {len(train):,} texts, {tokens:,} tokens, {math.ceil(len(train) / batch):,} steps of {batch}",
        f"  at a time: {concurrent}, {room}",
        f"  model: {settings.model.family}, {parameters:,} parameters{' at most' if search.space else ''}",
        f"  disk: at most {needed / 1e9:.2f} GB in {storage}" + (f", free {free / 1e9:.2f} GB" if free else ""),
        *(f"  {line}" for line in tracked),
        "dry run: no trial was started and nothing written",
    ]
    return found, lines


def _over(storage: str, name: str) -> int:
    counts = read_search(storage, name).counts()
    return sum(count for outcome, count in counts.items() if outcome not in ("running", "killed"))


def _room(settings: Settings) -> tuple[int, str]:
    """How many trials would run at once, and why. Starts no Ray: without a cluster, what this machine has counts."""
    search = settings.search
    if starts_locally():
        nodes, where = [local_resources()], "on this machine"
    else:
        with connected(settings.home) as cluster:
            nodes, where = living_nodes(), f"on the cluster at {cluster.address}"
    try:
        return concurrent_trials(search, nodes), f"{where}: {arithmetic(search, nodes)}"
    except ConfigError as error:
        if not search.cluster_wait_s:
            raise
        grown = min(search.max_concurrent or 1, search.trials)
        return grown, f"once the cluster has grown, for which it waits up to {search.cluster_wait_s:g} s: {error}"


def _tracked(settings: Settings, beginning: Beginning) -> list[str]:
    """Where the search would be logged, and what earlier trials would teach it."""
    uri, warm_start = mlflow_client.redact(settings.tracking.uri or ""), settings.search.warm_start
    where = f"MLflow: {uri}, experiment {settings.tracking.experiment}"
    if mlflow_client.makes_database(settings.tracking):
        if warm_start:
            raise ConfigError(f"search.warm_start: {uri} does not exist, so there is no trial to learn from")
        return [f"{where}; the database would be made"]
    client = mlflow_client.connect(settings.tracking)
    if not warm_start:
        return [where]
    return [where, known_beforehand(client, settings.search, beginning).line()]
