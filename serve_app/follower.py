"""Follows the alias: a thread that notices a new version, loads and warms it beside the old one, and hands it over.

What cannot be loaded is remembered with its error and tried again a few times; whatever serves keeps serving. While
MLflow is down nothing changes, and a replica without a model starts from the last version that loaded well here.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from configs.exit_codes import UsageError
from serve_app.inference.folder import ModelFolderError
from serve_app.mlflow_client import TrackingUnavailable
from serve_app.model_source import ModelCache, ModelVersion, load_verified

if TYPE_CHECKING:
    from serve_app.engine_process import RemoteEngine

TRIES = 5
FIRST_BACKOFF_S = 2.0  # doubled after every try
_LONGEST_BACKOFF_S = 60.0
_REMEMBERED_ERRORS = 5
logger = logging.getLogger(__name__)


class Alias(Protocol):
    """Where versions come from: ``RegistryAlias``, or a fake."""

    def find(self) -> ModelVersion | None:
        """The version under the alias, None while there is none. Raises TrackingUnavailable."""

    def download(self, version: ModelVersion, into: Path) -> None:
        """Writes the version's artifact below ``into``."""


@dataclass(frozen=True)
class Loaded:
    """A version that is ready to serve. ``at``: when it was loaded, unix seconds. ``last_good``: it is served because
    it loaded well before, not because the registry says so."""

    engine: RemoteEngine
    version: ModelVersion
    at: float
    last_good: bool = False


@dataclass(frozen=True)
class LoadFailure:
    """A version that could not be loaded. ``at``: the last try, unix seconds; ``retry_at``: by the clock."""

    version: ModelVersion
    error: str
    fix: str
    tries: int
    at: float
    retry_at: float


class Follower:
    """Calls ``on_loaded`` (on its own thread) with every version to serve.

    ``load`` turns a saved-model folder into a warm engine. ``on_change`` is called after every change of ``status``,
    ``on_load_error`` and ``on_registry_error`` after every failed try, for the metrics.
    """

    def __init__(
        self,
        alias: Alias,
        cache: ModelCache,
        model_name: str,
        load: Callable[[Path], RemoteEngine],
        *,
        on_loaded: Callable[[Loaded], None],
        on_change: Callable[[], None] = lambda: None,
        on_load_error: Callable[[], None] = lambda: None,
        on_registry_error: Callable[[], None] = lambda: None,
        poll_interval_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._alias, self._cache, self._model_name, self._load = alias, cache, model_name, load
        self._on_loaded, self._on_change = on_loaded, on_change
        self._on_load_error, self._on_registry_error = on_load_error, on_registry_error
        self._poll_interval_s, self._clock = poll_interval_s, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow-alias", daemon=True)
        self._current: Loaded | None = None
        self._wanted: ModelVersion | None = None
        self._failures: dict[ModelVersion, LoadFailure] = {}
        self._loading: str | None = None
        self._registry_error: str | None = None
        self.first_look: Future[None] = Future()  # done after the first look, loaded or not

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end; does not wait for a load on its way."""
        self._stop.set()

    @property
    def current(self) -> Loaded | None:
        """The version that was handed over last."""
        return self._current

    @property
    def alive(self) -> bool:
        """Whether the thread runs as it should."""
        return self._thread.is_alive() or self._stop.is_set() or not self.first_look.done()

    def status(self) -> dict[str, Any]:
        """What /info tells: the version wanted, the one being loaded, and what failed."""
        wanted, current = self._wanted, self._current
        return {
            "desired_version": wanted.version if wanted else None,
            "loading_version": self._loading,
            "started_from_last_good": current is not None and current.last_good,
            "load_errors": [
                {
                    "version": failure.version.version,
                    "error": failure.error,
                    "fix": failure.fix,
                    "tries": failure.tries,
                    "at": failure.at,
                }
                for failure in list(self._failures.values())
            ],
            "registry_error": self._registry_error,
        }

    def look(self) -> None:
        """One look at the alias, and what follows from it. Never raises."""
        before = self.status()
        try:
            wanted = self._alias.find()
        except TrackingUnavailable as error:
            self._on_registry_error()
            if self._registry_error is None:
                logger.warning("%s", error)
            self._registry_error = str(error)
            if self._current is None:
                self._load_last_good()
        else:
            self._registry_error = None
            self._follow(wanted)
        if self.status() != before:
            self._on_change()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:
                logger.exception("looking at the alias failed unexpectedly; the served version stays")
            if not self.first_look.done():
                self.first_look.set_result(None)
            self._stop.wait(self._poll_interval_s)

    def _follow(self, wanted: ModelVersion | None) -> None:
        moved = wanted != self._wanted
        if moved and wanted in self._failures:
            # The alias has been moved to it on purpose: forget the back-off.
            self._failures[wanted] = replace(self._failures[wanted], tries=0, retry_at=self._clock())
        self._wanted = wanted
        if wanted is None:
            return  # an alias that was removed does not end the service
        if self._current is not None and self._current.version == wanted:
            self._current = replace(self._current, version=wanted, last_good=False)  # its tags may have changed
            if moved:
                self._keep_up(self._cache.tidy, wanted.name)
            return
        if not (self._is_due(wanted) and self._try(wanted)) and self._current is None:
            self._load_last_good()

    def _is_due(self, version: ModelVersion) -> bool:
        failure = self._failures.get(version)
        return failure is None or self._clock() >= failure.retry_at

    def _try(self, version: ModelVersion, *, last_good: bool = False) -> bool:
        self._loading = version.version
        self._on_change()
        try:
            engine = load_verified(self._cache, version, self._alias.download, self._load)
            loaded = Loaded(engine, version, time.time(), last_good)
        except Exception as error:  # noqa: BLE001 - a version that cannot be loaded must not end the service
            self._failed(version, error)
            return False
        finally:
            self._loading = None
        self._failures.pop(version, None)
        self._current = loaded
        self._on_loaded(loaded)
        self._keep_up(self._cache.remember_good, replace(version, weights_digest=loaded.engine.weights_digest))
        return True

    def _failed(self, version: ModelVersion, error: Exception) -> None:
        self._on_load_error()
        known = self._failures.pop(version, None)
        tries = known.tries + 1 if known else 1
        wait = min(FIRST_BACKOFF_S * 2 ** (tries - 1), _LONGEST_BACKOFF_S)
        fix = f"It is tried again in {wait:.0f} s; until it is there, the alias can be moved to another version."
        if isinstance(error, ModelFolderError):
            fix = "Move the alias to another version, or register this model anew."
            if tries >= TRIES:  # the model itself is broken: only another version helps
                wait = math.inf
                fix += " It is tried again when the alias comes back to it."
        elif isinstance(error, UsageError):  # of the settings, on this hardware
            wait, fix = math.inf, "No version can be loaded here: change the setting and deploy again."
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._failures[version] = LoadFailure(version, text, fix, tries, time.time(), self._clock() + wait)
        while len(self._failures) > _REMEMBERED_ERRORS:
            self._failures.pop(next(iter(self._failures)))
        serving = self._current.version.version if self._current else "none"
        logger.error("version %s cannot be loaded (try %d): %s. %s Serving version: %s",
                     version.version, tries, text, fix, serving)  # fmt: skip

    def _load_last_good(self) -> None:
        for version in self._cache.good(self._model_name):
            if not self._is_due(version):
                continue
            logger.warning("starting from version %s, the last that loaded well on this machine", version.version)
            if self._try(version, last_good=True):
                return

    def _keep_up(self, work: Callable[[Any], None], subject: Any) -> None:
        try:
            work(subject)
        except OSError as error:
            logger.warning("the model cache cannot be kept up: %s", error)
