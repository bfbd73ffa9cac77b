"""Explanations beside predictions: one at a time, in a thread of low priority, with an admission of their own.

An explanation costs as much as a hundred predictions and nobody waits for it in a program, so it must never hold one
up: it has no place in the queue of the predictions, one core at most, and of that what the predictions leave over.
Plain asyncio, no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from configs.schema import ServingConfig
from serve_app.answers import Explanation, Refusal
from serve_app.batcher import Admission, DeadlineExceeded
from serve_app.engine_process import EngineGone, EngineProcess
from serve_app.errors import ErrorCode
from serve_app.follower import Loaded
from serve_app.inference.attributions import BASELINE
from serve_app.metrics import ClassifierMetrics

if TYPE_CHECKING:
    from serve_app.inference.tokenizing import LocatedTokens

_LOWEST_PRIORITY = 19  # nice; Ray's workers run at 15
logger = logging.getLogger(__name__)


class GivenUp(Exception):
    """Nobody waits for this explanation any more."""


class Explaining:
    """The explanations of one replica. Use it on one event loop."""

    def __init__(self, serving: ServingConfig, metrics: ClassifierMetrics, engines: EngineProcess) -> None:
        self._serving, self._metrics = serving, metrics
        self._admission = Admission(serving.explain_max_concurrent)
        self._thread = ThreadPoolExecutor(1, "explain", partial(engines.prepare, 1, _LOWEST_PRIORITY))
        self._latest_s = 1.0

    def close(self) -> None:
        """Starts nothing any more; what runs is not waited for."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def explain(
        self, loaded: Loaded, text: str, truncate: bool, label: str | None, remaining_s: float = math.inf
    ) -> Explanation | Refusal:
        """Why ``loaded`` answers ``text`` as it does, or what speaks for ``label``."""
        answer = await self._explain(loaded, text, truncate, label, time.monotonic() + remaining_s)
        if isinstance(answer, Refusal):
            self._metrics.explanations_refused.labels(answer.code.value).inc()
        else:
            self._metrics.explanations.labels(answer.version).inc()
            self._metrics.explain.observe(answer.phases["explain"])
        return answer

    async def _explain(
        self, loaded: Loaded, text: str, truncate: bool, label: str | None, deadline: float
    ) -> Explanation | Refusal:
        engine, started = loaded.engine, time.monotonic()
        if label is not None and label not in engine.labels:
            return Refusal(
                ErrorCode.INVALID_REQUEST,
                f"'label': the model has no {label[:60]!a}, it has {', '.join(engine.labels[:50])}.",
            )
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(None, engine.locate, text)
        if refusal := self._too_long(tokens, engine.max_length, truncate):
            return refusal
        if not self._admission.try_acquire(1):
            retry_after_s = max(1, min(60, math.ceil(self._latest_s * self._admission.held)))
            return Refusal(ErrorCode.OVERLOADED, retry_after_s=retry_after_s)
        self._metrics.explanations_in_progress.set(self._admission.held)
        tokenized, given_up = time.monotonic(), threading.Event()
        try:
            answer = await loop.run_in_executor(
                self._thread, self._compute, loaded, tokens, label, _stopper(given_up, deadline)
            )
        except DeadlineExceeded:
            return Refusal(ErrorCode.DEADLINE_EXCEEDED)
        except EngineGone:
            return Refusal(ErrorCode.NOT_READY)
        except Exception:
            logger.exception("an explanation failed")
            return Refusal(ErrorCode.INTERNAL)
        finally:
            given_up.set()
            self._admission.release(1)
            self._metrics.explanations_in_progress.set(self._admission.held)
        self._latest_s = answer.phases["explain"]
        queue_s = time.monotonic() - tokenized - answer.phases["explain"]
        answer.phases.update(tokenize=tokenized - started, queue=max(0.0, queue_s))
        return answer

    def _too_long(self, tokens: LocatedTokens, max_length: int, truncate: bool) -> Refusal | None:
        if tokens.truncated and not truncate:
            message = (
                f"The text has more tokens than the {max_length} that the model takes; with truncate true it is cut."
            )
            return Refusal(ErrorCode.TEXT_TOO_LONG, message)
        most = self._serving.explain_max_tokens
        if len(tokens.ids) > most:
            message = f"The text has {len(tokens.ids)} tokens, at most {most} are explained (explain_max_tokens)."
            return Refusal(ErrorCode.TEXT_TOO_LONG, message)
        return None

    def _compute(
        self, loaded: Loaded, tokens: LocatedTokens, label: str | None, go_on: Callable[[], None]
    ) -> Explanation:
        """In the thread of the explanations."""
        began, engine = time.monotonic(), loaded.engine
        go_on()
        probabilities = engine.forward([tokens.ids])[0]
        explained = int(probabilities.argmax()) if label is None else engine.labels.index(label)
        found = engine.explain(tokens, explained, self._serving.explain_steps, go_on)
        if not (np.isfinite(probabilities).all() and math.isfinite(found.completeness_gap)):
            raise ArithmeticError("the model gave output or gradients that are not finite")
        return Explanation(
            version=loaded.version.version,
            labels=engine.labels,
            probabilities=probabilities.tolist(),
            truncated=tokens.truncated,
            explained_label=engine.labels[explained],
            words=[(word.start, word.end, word.attribution) for word in found.words],
            baseline=BASELINE,
            log_odds=found.log_odds,
            baseline_log_odds=found.baseline_log_odds,
            completeness_gap=found.completeness_gap,
            phases={"explain": time.monotonic() - began},
        )


def _stopper(given_up: threading.Event, deadline: float) -> Callable[[], None]:
    def go_on() -> None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded
        if given_up.is_set():
            raise GivenUp

    return go_on
