"""The gateway deployment: the HTTP interface of ``api.py`` in replicas of its own, with the classifiers behind Serve's
handles. For classifiers that should not do the HTTP work themselves, see ``serving.gateway_replicas``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI

from configs.schema import Settings
from serve_app import errors
from serve_app.access_log import flush_access_log, log_to_replica_file
from serve_app.answers import Answer, Explanation
from serve_app.api import create_api
from serve_app.board import Reporter, View
from serve_app.errors import ErrorCode
from serve_app.front import guard_server
from serve_app.metrics import GatewayMetrics, snapshot
from serve_app.mode import log_mode, warn_if_unreachable

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponse

Reply = TypeVar("Reply", Answer, Explanation)
_TRIES = 4  # of a request whose replica had no model or died: another one may answer


class ServeBackend:
    """The rest of the application behind Ray Serve's handles."""

    def __init__(self, classifier: DeploymentHandle[Any], reporter: Reporter) -> None:
        self._classifier, self._reporter = classifier, reporter

    @property
    def view(self) -> View:
        """See Backend."""
        return self._reporter.view

    async def classify(self, texts: Sequence[str], truncate: bool, remaining_s: Callable[[], float]) -> Answer:
        """See Backend."""
        texts = list(texts)
        return await self._ask(Answer, lambda: self._classifier.classify.remote(texts, truncate, remaining_s()))

    async def explain(
        self, text: str, truncate: bool, label: str | None, remaining_s: Callable[[], float]
    ) -> Explanation:
        """See Backend."""
        return await self._ask(
            Explanation, lambda: self._classifier.explain.remote(text, truncate, label, remaining_s())
        )

    async def _ask(self, kind: type[Reply], send: Callable[[], Any]) -> Reply:
        """Sends a request, to another replica when one has no model or dies: neither kind changes anything."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        problem = errors.not_ready()
        for _ in range(_TRIES):
            try:
                answer = await _answer_of(send())
            except BackPressureError:
                raise errors.overloaded(1) from None
            except DeploymentUnavailableError:
                raise errors.not_ready() from None
            except RayActorError:
                continue
            if isinstance(answer, kind):
                return answer
            if answer.code not in (ErrorCode.NOT_READY, ErrorCode.DRAINING):
                raise answer.as_error()
            problem = answer.as_error()
            if not any(replica["ready"] for replica in self.view["replicas"]):
                break
        raise problem

    async def metrics_text(self) -> str:
        """See Backend."""
        return await self._reporter.metrics_text()


async def _answer_of(response: DeploymentResponse[Any]) -> Any:
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()  # past the deadline, or the client is gone: the texts need not be computed
        raise


class GatewayReplica:
    """The deployment: the HTTP interface on Ray Serve."""

    async def __init__(  # type: ignore[misc]
        self,
        settings: dict[str, Any],
        key_digests: list[str],
        classifier: DeploymentHandle[Any],
        board: DeploymentHandle[Any],
    ) -> None:
        from ray import serve

        log_to_replica_file()
        log_mode()
        await warn_if_unreachable()
        guard_server()
        self._metrics = GatewayMetrics()
        self._reporter = Reporter(
            "gateway",
            serve.get_replica_context().replica_id.unique_id,
            lambda: (snapshot(self._metrics.registry), None),
            sync=board.sync.remote,
            push=board.push.remote,
            scrape=board.scrape.remote,
        )
        self._api = create_api(
            Settings.model_validate(settings),
            ServeBackend(classifier, self._reporter),
            self._metrics,
            key_digests=key_digests,
            adds_request_id=False,
        )
        self._reporter.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api

    def check_health(self) -> None:
        """Called by Serve: answering is being healthy."""

    async def __del__(self) -> None:
        if hasattr(self, "_reporter"):
            await self._reporter.stop()
            flush_access_log()
