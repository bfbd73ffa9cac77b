"""A client of the HTTP service: ``Client``, and ``AsyncClient`` for asyncio.

    with Client("http://127.0.0.1:8000") as client:
        client.predict("a good movie").label

Needs neither Ray nor torch. Nothing here logs a text or a key; httpx logs method, address and status.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Self, TypeVar

import httpx

from serve_app.client_core import API_KEY_VARIABLE, AtOnce, Calls, Pause, RetryPolicy, Send, Steps, http_options
from serve_app.client_replies import (
    DeadlineExceeded,
    Info,
    InvalidRequest,
    Limits,
    NotReady,
    Overloaded,
    Prediction,
    ServiceFailed,
    TrialgateError,
    Unauthorized,
    UnexpectedReply,
    Unreachable,
)

__all__ = [
    "API_KEY_VARIABLE",
    "AsyncClient",
    "Client",
    "DeadlineExceeded",
    "Info",
    "InvalidRequest",
    "Limits",
    "NotReady",
    "Overloaded",
    "Prediction",
    "RetryPolicy",
    "ServiceFailed",
    "TrialgateError",
    "Unauthorized",
    "UnexpectedReply",
    "Unreachable",
]

_DEFAULT_RETRY = RetryPolicy()
T = TypeVar("T")


class Client:
    """A client for threads; one may be shared by many.

    ``base_url``: of the service, with the application's path if it has one. ``api_key``: sent as a bearer token;
    None: what TRIALGATE_API_KEY holds when the client is made, "": none. ``deadline_s``: the most that one call may
    take, retries and waits included; of ``predict_many``, each batch. ``concurrency``: batches in flight at once.
    ``transport``, ``sleep``, ``clock`` and ``draw`` (0 to 1, at random) are for tests and for special connections.

    Every method raises TrialgateError, by kind: InvalidRequest, Unauthorized, Overloaded, NotReady, DeadlineExceeded,
    ServiceFailed, Unreachable, UnexpectedReply. Retried are errors that the service calls retryable, 5xx, 408 and 429
    that come from a proxy before it, and connections that fail or break: predictions change nothing, so they can be
    asked for twice. When no time or retry is left, the last error is raised.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline_s: float = 30.0,
        concurrency: int = 4,
        retry: RetryPolicy = _DEFAULT_RETRY,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._calls = Calls(deadline_s, retry, clock, draw)
        self._concurrency, self._sleep = concurrency, sleep
        self._http = httpx.Client(transport=transport, **http_options(base_url, api_key, concurrency))

    def predict(self, text: str, *, truncate: bool = True) -> Prediction:
        """The answer for one text. ``truncate`` False: a text over the model's length is refused, not cut."""
        return self._run(self._calls.predict(text, truncate))

    def predict_many(
        self, texts: Sequence[str], *, truncate: bool = True, deadline_s: float | None = None
    ) -> list[Prediction]:
        """The answers for any number of texts, in their order, all or none.

        They are sent in batches of what the service takes at most, asked for once (``/info``). If one batch fails for
        good, its error is raised with ``places``, no further batch is begun, those in flight are waited for, and
        what was answered is dropped. Each batch is computed by one model version; several batches may see several.
        ``deadline_s`` bounds the whole call, which has otherwise only the bound of each batch.
        """
        return self._run(self._calls.predict_many(texts, truncate, deadline_s))

    def info(self) -> Info:
        """The model that is served, and the limits."""
        return self._run(self._calls.info())

    def ready(self) -> bool:
        """Whether the service answers now that a model is loaded; one try, and False whatever is wrong."""
        return self._run(self._calls.ready())

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Returns when the service is ready; raises what was wrong at the last try when ``timeout_s`` is over."""
        self._run(self._calls.wait_until_ready(timeout_s))

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        outcome: Any = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            match step:
                case Send():
                    outcome = self._send(step)
                case Pause():
                    self._sleep(step.seconds)
                    outcome = None
                case AtOnce():
                    outcome = self._at_once(step)

    def _send(self, step: Send) -> httpx.Response | Exception:
        try:
            return self._http.request(**step.arguments())
        except httpx.RequestError as error:
            return error

    def _at_once(self, step: AtOnce) -> list[Any]:
        failures: list[BaseException] = []

        def work(part: Steps[Any]) -> Any:
            try:
                return self._run(part)
            except BaseException as error:
                failures.append(error)  # the first is the cause; later ones may only have found the budget ended
                step.budget.end()
                raise

        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="trialgate-client") as pool:
            futures = [pool.submit(work, part) for part in step.parts]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # after Ctrl-C as well, what has not begun never does
                step.budget.end()
                pool.shutdown(wait=False, cancel_futures=True)
        if failures:
            raise failures[0]
        return [future.result() for future in futures]


class AsyncClient:
    """``Client`` for asyncio, with the same arguments, results and errors."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline_s: float = 30.0,
        concurrency: int = 4,
        retry: RetryPolicy = _DEFAULT_RETRY,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._calls = Calls(deadline_s, retry, clock, draw)
        self._concurrency, self._sleep = concurrency, sleep
        self._http = httpx.AsyncClient(transport=transport, **http_options(base_url, api_key, concurrency))

    async def predict(self, text: str, *, truncate: bool = True) -> Prediction:
        """See ``Client.predict``."""
        return await self._run(self._calls.predict(text, truncate))

    async def predict_many(
        self, texts: Sequence[str], *, truncate: bool = True, deadline_s: float | None = None
    ) -> list[Prediction]:
        """See ``Client.predict_many``; if one batch fails, those in flight are cancelled."""
        return await self._run(self._calls.predict_many(texts, truncate, deadline_s))

    async def info(self) -> Info:
        """See ``Client.info``."""
        return await self._run(self._calls.info())

    async def ready(self) -> bool:
        """See ``Client.ready``."""
        return await self._run(self._calls.ready())

    async def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """See ``Client.wait_until_ready``."""
        await self._run(self._calls.wait_until_ready(timeout_s))

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        outcome: Any = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                result: T = done.value
                return result
            match step:
                case Send():
                    outcome = await self._send(step)
                case Pause():
                    await self._sleep(step.seconds)
                    outcome = None
                case AtOnce():
                    outcome = await self._at_once(step)

    async def _send(self, step: Send) -> httpx.Response | Exception:
        try:
            async with asyncio.timeout(step.timeout_s):  # httpx's own count anew with every byte
                return await self._http.request(**step.arguments())
        except (httpx.RequestError, TimeoutError) as error:
            return error

    async def _at_once(self, step: AtOnce) -> list[Any]:
        results: list[Any] = [None] * len(step.parts)
        waiting = iter(enumerate(step.parts))

        async def work() -> None:
            for place, part in waiting:
                try:
                    results[place] = await self._run(part)
                except BaseException:
                    step.budget.end()
                    raise

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(step.parts))):
                    group.create_task(work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return results
