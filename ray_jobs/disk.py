"""What a search keeps in its storage, and how much room it needs there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from configs.search import SearchConfig
from ray_jobs import objectives
from ray_jobs.command import StorageUnavailable, say
from ray_jobs.trial import MODEL_FOLDER, checkpoint_name

if TYPE_CHECKING:
    from ray_jobs.tracking import Tracker, TrialRecord

_BYTES_OF_MODEL = 4  # fp32 weights, per parameter
_BYTES_OF_STATE = 12  # and the optimizer's two moments
_FULL = "No space left on device"
_HAVE_BUCKETS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}


def is_full(error: BaseException | str) -> bool:
    """Whether ``error`` says that a disk is full; also as the text that comes from another process."""
    return _FULL in str(error) or getattr(error, "errno", None) == errno.ENOSPC


def needed_bytes(parameters: int, search: SearchConfig, concurrent: int) -> int:
    """The most that a search's storage holds at once. ``parameters``: of one model, count.

    A running trial has three best checkpoints, its last one, and one that is being written; the best models of ended
    trials are kept.
    """
    running = 5 * (_BYTES_OF_MODEL + _BYTES_OF_STATE)
    return parameters * (concurrent * running + (search.keep_best + 1) * _BYTES_OF_MODEL)


def check_room(storage: str, needed: int) -> int | None:
    """Bytes free on the disk of a local ``storage``. Raises StorageUnavailable when it is no folder that can be
    written, or has less than ``needed`` bytes. None elsewhere: an object store has no end that could be asked for."""
    if "://" in storage:
        return None
    folder = Path(storage)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise StorageUnavailable(f"search.storage {storage} cannot be written: {folder} is no folder that this user "
                                 "may write to")  # fmt: skip
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageUnavailable(
            f"search.storage {storage} has {free / 1e9:.2f} GB free, and this search needs up to "
            f"{needed / 1e9:.2f} GB: make room, choose another search.storage, or lower search.max_concurrent or "
            "search.keep_best"
        )
    return free


def make_folder(filesystem: AbstractFileSystem, path: str) -> None:
    """Makes the folder ``path`` where there are folders. An object store has none: asked for one, fsspec would make the
    bucket, and a name that was mistyped would be a new bucket."""
    protocols = {filesystem.protocol} if isinstance(filesystem.protocol, str) else set(filesystem.protocol)
    if not protocols & _HAVE_BUCKETS:
        filesystem.makedirs(path, exist_ok=True)


def write_whole(location: str, text: str) -> None:
    """Writes the file at a path or URL, which has its old content or all of the new one, also where a disk is full."""
    filesystem, path = fsspec.core.url_to_fs(location)
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(path, text.encode())  # object stores show a file whole or not at all
        return
    part = Path(f"{path}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def losers(ended: Sequence[TrialRecord], search: SearchConfig) -> list[TrialRecord]:
    """Those of the ``ended`` trials whose models need not be kept: failed ones, and all but the best by F1.

    With several objectives the Pareto front is kept as well.
    """
    usable = sorted((t for t in ended if t.outcome != "failed" and t.model_uri), key=lambda t: -(t.f1 or 0.0))
    front = objectives.front(usable, search) if len(search.objectives) > 1 else []
    kept = {trial.trial_id for trial in [*usable[: search.keep_best], *front]}
    return [trial for trial in ended if trial.trial_id not in kept]


def remove_trial(trials: str, trial_id: str) -> None:
    """Removes everything of a trial; ``trials``: the folder or URL that holds all of them."""
    filesystem, path = fsspec.core.url_to_fs(f"{trials}/{trial_id}")
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


def tidy(tracker: Tracker, trials: str, search: SearchConfig, just_ended: str | None = None) -> None:
    """Removes from ``trials`` what the ended trials of a search no longer need. Trouble with it is said, not raised:
    the search has better things to do than to clean up.

    ``just_ended``: the one trial that has not been looked at yet (default: all); of the others only models that have
    become losers are touched, so that a long search does not walk through its storage whenever a trial ends.
    """
    ended = [trial for trial in tracker.trials.values() if trial.outcome in ("finished", "stopped_early", "failed")]
    # By their ids: records are compared field by field, and among 1,000 trials that took 30 ms whenever one ended.
    lost = {trial.trial_id for trial in losers(ended, search)}
    for trial in ended:
        if just_ended not in (None, trial.trial_id) and not (trial.trial_id in lost and trial.model_uri):
            continue
        try:
            if trial.trial_id in lost:
                remove_trial(trials, trial.trial_id)
                if trial.model_uri is not None:
                    tracker.model_removed(trial.trial_id)
            else:
                keep_only_model(trials, trial)
        except Exception as error:  # noqa: BLE001 - every store has exceptions of its own
            say(f"{trials}/{trial.trial_id} could not be tidied: {error}")


def keep_only_model(trials: str, trial: TrialRecord) -> None:
    """Removes what an ended trial no longer needs: all but the model of its best epoch."""
    filesystem, path = fsspec.core.url_to_fs(f"{trials}/{trial.trial_id}")
    filesystem.invalidate_cache()  # others have written there
    best = f"{path}/{checkpoint_name(trial.best_epoch)}"
    if not filesystem.exists(f"{best}/{MODEL_FOLDER}"):
        return
    for folder, kept in ((path, best), (best, f"{best}/{MODEL_FOLDER}")):
        for entry in filesystem.ls(folder, detail=False):
            # In an object store a folder's listing has the folder itself, where an empty object stands for it.
            if entry.rstrip("/") not in (folder, kept):
                filesystem.rm(entry, recursive=True)
