"""The classifier's deployments: a ``Classifier`` that reports to the board, behind gateways or with the HTTP interface
in the same process.

With the interface in the process a request crosses one process less; the figures are in docs/serving.md. Behind
gateways, nodes with GPUs do nothing but classify, and the HTTP work scales by itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from configs.schema import Settings
from serve_app.access_log import flush_access_log, log_to_replica_file
from serve_app.answers import Answer, Explanation, Refusal
from serve_app.api import create_api
from serve_app.board import Reporter, View
from serve_app.classifier import Classifier
from serve_app.front import Shortcut, guard_server
from serve_app.metrics import GatewayMetrics, snapshot
from serve_app.mode import log_mode, warn_if_unreachable

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)


class ClassifierReplica:
    """The deployment behind gateways."""

    # Serve awaits a constructor, and sends no request before it is done: by then the model is loaded.
    async def __init__(self, settings: dict[str, Any], board: DeploymentHandle[Any]) -> None:  # type: ignore[misc]
        await self._begin(Settings.model_validate(settings), board)

    async def _begin(self, settings: Settings, board: DeploymentHandle[Any]) -> None:
        from ray import serve

        log_to_replica_file()
        log_mode()
        replica = serve.get_replica_context().replica_id.unique_id
        self._classifier = Classifier(settings, replica, on_change=lambda: self._reporter.news(), on_broken=_end)
        self._reporter = Reporter(
            "classifier", replica, self._collect, sync=board.sync.remote, push=board.push.remote,
            scrape=board.scrape.remote,
        )  # fmt: skip
        self._reporter.start()
        await self._classifier.start()

    async def classify(self, texts: list[str], truncate: bool, remaining_s: float) -> Answer | Refusal:
        """See ``Classifier.classify``."""
        return await self._classifier.classify(texts, truncate, remaining_s)

    async def explain(self, text: str, truncate: bool, label: str | None, remaining_s: float) -> Explanation | Refusal:
        """See ``Classifier.explain``."""
        return await self._classifier.explain(text, truncate, label, remaining_s)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve: figures for autoscaling."""
        return self._classifier.demand()

    def check_health(self) -> None:
        """Called by Serve."""
        self._classifier.check_health()

    async def __del__(self) -> None:
        if hasattr(self, "_reporter"):
            await self._classifier.close()
            await self._reporter.stop()
            flush_access_log()

    def _collect(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        return snapshot(self._classifier.metrics.registry), self._classifier.status()


def _end() -> None:
    """Ends this process, which cannot compute any more: Serve starts another one at once. Told by the health check, it
    would do so half a minute later."""
    try:
        logger.error("the engine's process has ended, and this replica with it")
        flush_access_log()
    finally:
        os._exit(1)


class ServiceReplica(ClassifierReplica):
    """The deployment that answers HTTP itself."""

    async def __init__(  # type: ignore[misc]
        self, settings: dict[str, Any], key_digests: list[str], board: DeploymentHandle[Any]
    ) -> None:
        resolved = Settings.model_validate(settings)
        self._http_metrics = GatewayMetrics()
        await self._begin(resolved, board)
        await warn_if_unreachable()
        self._api = create_api(
            resolved,
            LocalBackend(self._classifier, self._reporter),
            self._http_metrics,
            key_digests=key_digests,
            adds_request_id=False,
        )
        guard_server(Shortcut(self._api.state.predictions, asyncio.get_running_loop()))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api

    def _collect(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        families, status = super()._collect()
        return families + snapshot(self._http_metrics.registry), status


class LocalBackend:
    """The rest of the application in the same process."""

    def __init__(self, classifier: Classifier, reporter: Reporter) -> None:
        self._classifier, self._reporter = classifier, reporter

    @property
    def view(self) -> View:
        """See Backend."""
        return self._reporter.view

    async def classify(self, texts: Sequence[str], truncate: bool, remaining_s: Callable[[], float]) -> Answer:
        """See Backend."""
        answer = await self._classifier.classify(texts, truncate, remaining_s())
        if isinstance(answer, Refusal):
            raise answer.as_error()
        return answer

    async def explain(
        self, text: str, truncate: bool, label: str | None, remaining_s: Callable[[], float]
    ) -> Explanation:
        """See Backend."""
        answer = await self._classifier.explain(text, truncate, label, remaining_s())
        if isinstance(answer, Refusal):
            raise answer.as_error()
        return answer

    async def metrics_text(self) -> str:
        """See Backend."""
        return await self._reporter.metrics_text()
