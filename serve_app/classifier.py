"""The classifier: texts to probabilities on the version under the alias, in batches, for many requests at once.

Plain asyncio, no Ray: ``replica.py`` has the deployments around it. Forward passes run in ``Lanes``, in a process of
their own, and tokenising in other threads, so the event loop stays free for admission, health checks and the board. A
request keeps the version that it was admitted with, so all the texts of a batch request are computed by one version and
a swap fails nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.schema import Settings
from serve_app.answers import Answer, Explanation, Refusal
from serve_app.autoscaling import REFUSED_TEXTS, TEXTS
from serve_app.batcher import Admission, Batcher, BatcherClosed, DeadlineExceeded
from serve_app.engine_process import EngineGone, EngineProcess, RemoteEngine
from serve_app.errors import ErrorCode
from serve_app.explaining import Explaining
from serve_app.follower import Alias, Follower, Loaded
from serve_app.lanes import Lanes
from serve_app.metrics import ClassifierMetrics
from serve_app.model_source import ModelCache, RegistryAlias

if TYPE_CHECKING:
    from serve_app.inference.tokenizing import Tokenized

# A forward pass takes well under a second; one that takes this long hangs, and Serve should replace the replica.
_STUCK_S = 120.0
_LEFT_UNANSWERED_S = 5.0  # a replica without engines has ended long before
_CHARACTERS_PER_TOKEN = 4  # of English text, about
logger = logging.getLogger(__name__)


class NotFinite(ValueError):
    """The model gave NaN or infinity for a text."""


@dataclass(frozen=True)
class _Served:
    loaded: Loaded
    batcher: Batcher[np.ndarray, np.ndarray]

    @property
    def version(self) -> str:
        return self.loaded.version.version


class Classifier:
    """One replica's work. Make and use it on one event loop.

    ``alias`` is a ``RegistryAlias`` and ``engines`` a process of its own unless a test says so. ``on_broken`` is
    called, on any thread, when that process ends before ``close``: nothing can be computed here any more.
    """

    def __init__(
        self,
        settings: Settings,
        replica: str,
        *,
        alias: Alias | None = None,
        engines: EngineProcess | None = None,
        on_change: Callable[[], None] = lambda: None,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        serving, tracking = settings.serving, settings.tracking
        if serving.cache_dir is None or tracking.uri is None:
            raise ValueError("serving.cache_dir and tracking.uri are not set: load the settings with load_settings")
        self.metrics = ClassifierMetrics()
        self._serving, self._replica, self._on_change = serving, replica, on_change
        self._loop = asyncio.get_running_loop()
        self._admission = Admission(serving.max_concurrent_texts)
        self._longest_wait_s = serving.max_queue_ms / 1000
        self._engines, self._ends_engines = engines or EngineProcess(on_broken), engines is None
        cores = max(1, int(serving.cpus_per_replica))
        self._lanes = Lanes(cores, self._engines.prepare, shared=serving.gpus_per_replica > 0)
        self._tokenize_threads = ThreadPoolExecutor(2, thread_name_prefix="tokenize")
        self._explaining = Explaining(serving, self.metrics, self._engines)
        self._served: _Served | None = None
        self._tokens_to_come = 0
        self._closing = False
        self._refused_texts = 0  # as overloaded, since the last look at the demand
        self._follower = Follower(
            alias or RegistryAlias(tracking, serving.alias),
            ModelCache(Path(serving.cache_dir), tracking.uri, serving.alias),
            tracking.model_name,
            self._load,
            on_loaded=self._hand_over,
            on_change=lambda: self._call_on_loop(on_change),
            on_load_error=self.metrics.load_errors.inc,
            on_registry_error=self.metrics.poll_errors.inc,
            poll_interval_s=serving.poll_interval_s,
        )

    async def start(self) -> None:
        """Starts following the alias and returns after the first look: a version that is there is loaded and warm."""
        self._follower.start()
        await asyncio.wrap_future(self._follower.first_look)

    async def close(self) -> None:
        """Stops. Predictions in work are finished, explanations are not; everything new is refused as draining."""
        self._closing = True
        self._follower.stop()
        if self._served is not None:
            await self._served.batcher.close()
        self._lanes.close()
        self._explaining.close()
        self._tokenize_threads.shutdown(wait=False, cancel_futures=True)
        if self._ends_engines:
            await asyncio.to_thread(self._engines.close)

    async def classify(self, texts: Sequence[str], truncate: bool, remaining_s: float = math.inf) -> Answer | Refusal:
        """The answer for all ``texts`` or for none. ``remaining_s``: what is left of the request's deadline."""
        deadline = time.monotonic() + remaining_s
        answer = await self._classify(texts, truncate, deadline)
        if isinstance(answer, Refusal):
            self.metrics.refused.labels(answer.code.value).inc()
            if answer.code is ErrorCode.OVERLOADED:
                self._refused_texts += len(texts)
        else:
            self.metrics.texts.labels(answer.version).inc(len(texts))
        return answer

    async def explain(
        self, text: str, truncate: bool, label: str | None, remaining_s: float = math.inf
    ) -> Explanation | Refusal:
        """Which words moved the answer for ``text``, or what speaks for ``label``; never in the way of ``classify``."""
        if self._closing or self._served is None:
            return Refusal(ErrorCode.DRAINING if self._closing else ErrorCode.NOT_READY)
        return await self._explaining.explain(self._served.loaded, text, truncate, label, remaining_s)

    async def _classify(self, texts: Sequence[str], truncate: bool, deadline: float) -> Answer | Refusal:
        served = self._served
        if self._closing:
            return Refusal(ErrorCode.DRAINING)
        if served is None:
            return Refusal(ErrorCode.NOT_READY)
        tokenized: Tokenized | None = None
        started = time.monotonic()
        if not truncate:  # text_too_long goes before overloaded, so it must be known first
            tokenized = await self._tokenize(served, texts, truncate)
            if tokenized.truncated.any():
                return _too_long(tokenized, served.loaded.engine.max_length, len(texts))
        wait_s, remaining_s = self._wait_s(served), deadline - time.monotonic()
        # What would wait too long, or into its deadline, is refused while that is still of use to the client.
        too_long = wait_s > self._longest_wait_s or wait_s > remaining_s > 0
        if too_long or not self._admission.try_acquire(len(texts)):
            return Refusal(ErrorCode.OVERLOADED, retry_after_s=max(1, min(60, math.ceil(wait_s))))
        self.metrics.in_progress.set(self._admission.held)
        try:
            if tokenized is None:
                with self._on_their_way(texts, served.loaded.engine.max_length):
                    tokenized = await self._tokenize(served, texts, truncate)
            tokenize_s = time.monotonic() - started
            rows = [tokenized.tokens[place] for place in range(len(texts))]
            outcome = await served.batcher.submit(rows, [len(row) for row in rows], deadline)
        except DeadlineExceeded:
            return Refusal(ErrorCode.DEADLINE_EXCEEDED)
        except BatcherClosed:
            return Refusal(ErrorCode.DRAINING)
        except EngineGone as gone:
            if gone.ended:
                # So will this process, by ``on_broken``, and what it leaves unanswered can be repeated elsewhere.
                # Told of it now, a client would try again at once, and be here again.
                await asyncio.sleep(min(_LEFT_UNANSWERED_S, max(0.0, deadline - time.monotonic())))
            return Refusal(ErrorCode.NOT_READY)
        except Exception:
            logger.exception("a forward pass failed")
            return Refusal(ErrorCode.INTERNAL)
        finally:
            self._admission.release(len(texts))
            self.metrics.in_progress.set(self._admission.held)
        return Answer(
            version=served.version,
            labels=served.loaded.engine.labels,
            probabilities=[row.tolist() for row in outcome.results],
            truncated=tokenized.truncated.tolist(),
            phases={"tokenize": tokenize_s, "queue": outcome.queue_s, "forward": outcome.forward_s},
        )

    def demand(self) -> dict[str, float]:
        """For autoscaling: texts in work, and texts refused as overloaded since the last call."""
        refused, self._refused_texts = self._refused_texts, 0
        return {TEXTS: float(self._admission.held), REFUSED_TEXTS: float(refused)}

    def status(self) -> dict[str, Any]:
        """What the board and /info know of this replica."""
        served, follower = self._served, self._follower.status()
        status: dict[str, Any] = {
            "replica": self._replica,
            "ready": served is not None and not self._closing,
            "version": None,
            **follower,
        }
        if served is not None:
            engine, version = served.loaded.engine, served.loaded.version
            current = self._follower.current
            if current is not None and current.version == version:
                version = current.version  # with the tags as they are now
            status.update(
                version=version.version,
                run_id=version.run_id,
                f1=version.f1,
                since=served.loaded.at,
                labels=list(engine.labels),
                max_length=engine.max_length,
                precision=engine.precision,
                precision_reason=engine.precision_reason,
                device=engine.device_type,
                weights_digest=engine.weights_digest,
            )
        return status

    def check_health(self) -> None:
        """Raises RuntimeError when this replica cannot do its work any more. Looks at flags only."""
        if not self._follower.alive:
            raise RuntimeError("the thread that follows the alias has ended")
        if self._engines.ended:
            raise RuntimeError("the engine's process has ended")
        if (running_s := self._lanes.running_s) > _STUCK_S:
            raise RuntimeError(f"a forward pass has been running for {running_s:.0f} s")

    def _wait_s(self, served: _Served) -> float:
        """How long a text that is admitted now is going to wait for its forward pass, seconds."""
        return self._lanes.seconds_for(served.batcher.tokens_ahead + self._tokens_to_come)

    @contextlib.contextmanager
    def _on_their_way(self, texts: Sequence[str], max_length: int) -> Iterator[None]:
        """Counts, about, the tokens of texts that are admitted and not in the batcher yet."""
        tokens = sum(min(max_length, 2 + len(text) // _CHARACTERS_PER_TOKEN) for text in texts)
        self._tokens_to_come += tokens
        try:
            yield
        finally:
            self._tokens_to_come -= tokens

    async def _tokenize(self, served: _Served, texts: Sequence[str], truncate: bool) -> Tokenized:
        return await self._loop.run_in_executor(
            self._tokenize_threads, served.loaded.engine.tokenize, list(texts), truncate
        )

    def _load(self, folder: Path) -> RemoteEngine:
        device = "cuda" if self._serving.gpus_per_replica > 0 else "cpu"
        # On one thread, as long as this one is not prepared for more: the other cores are for the version that serves.
        return self._engines.load(folder, self._serving.precision, device)

    def _hand_over(self, loaded: Loaded) -> None:
        """On the follower's thread: puts a version to work, and returns when it is."""
        if self._served is None:  # later ones find the threads started and must not wait for what they compute
            self._lanes.warm_up(loaded.engine.warm_up)
        done = self._call_on_loop(lambda: self._install(loaded))
        if done is not None:
            done.result()

    def _call_on_loop(self, function: Callable[[], None]) -> Any:
        async def call() -> None:
            function()

        if self._loop.is_closed():
            return None
        return asyncio.run_coroutine_threadsafe(call(), self._loop)

    def _install(self, loaded: Loaded) -> None:
        engine = loaded.engine

        def forward(take: Callable[[], list[np.ndarray]]) -> tuple[list[np.ndarray], int]:
            if not (rows := take()):
                return [], 0
            probabilities = engine.forward(rows)
            if not np.isfinite(probabilities).all():
                raise NotFinite("the model gave output that is not finite")
            return list(probabilities), sum(map(len, rows))

        async def run(take: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
            return await self._lanes.run(lambda: forward(take), alone=not behind.waiting_tokens)

        batcher: Batcher[np.ndarray, np.ndarray] = Batcher(
            run,
            max_tokens=self._serving.batch_tokens,
            max_texts=self._serving.max_batch_texts,
            lanes=self._lanes.count,
            observe=self.metrics.observe_batch,
        )
        # Weak, or the two would hold each other, and with them a model that is not served any more until Python happens
        # to look for such circles: fourteen models were in memory at once.
        behind = weakref.proxy(batcher)
        # Requests that hold the old one finish on it; the last of them lets it go.
        self._served = _Served(loaded, batcher)
        self.metrics.serve_version(loaded.version.version, engine.precision)
        self.metrics.watch_queue(lambda: batcher.waiting_texts, lambda: batcher.waiting_tokens)
        logger.info("serving version %s in %s (%s)", loaded.version.version, engine.precision, engine.precision_reason)
        self._on_change()


def _too_long(tokenized: Tokenized, max_length: int, texts: int) -> Refusal:
    place = int(np.argmax(tokenized.truncated))
    length = int(tokenized.tokens.lengths[place])
    return Refusal(
        ErrorCode.TEXT_TOO_LONG,
        f"Text {place + 1} of {texts} has {length} tokens, the model takes {max_length}; with truncate true it is cut.",
    )
