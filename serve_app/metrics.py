"""Prometheus metrics: each replica counts in a registry of its own; one text shows them all.

A replica's registry travels as plain values (``snapshot``); ``render`` puts the snapshots of many replicas into one
Prometheus text, with ``deployment`` and ``replica`` on every series. Nothing uses the library's global registry,
which Ray fills with its own metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric

from serve_app.batcher import BatchRecord

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# One metric family: name, type, help, samples of (series name, labels, value). JSON-like, so it crosses processes.
Family = dict[str, Any]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LONG_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = tuple(2**power for power in range(4, 16))


class GatewayMetrics:
    """What one gateway replica counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "trialgate_requests", "Answered requests.", ["route", "method", "code", "error"], registry=self.registry
        )
        self.seconds = Histogram(
            "trialgate_request_seconds", "First byte to answer, seconds.", ["route"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.in_progress = Gauge("trialgate_requests_in_progress", "Requests being answered.", registry=self.registry)

    def answered(self, route: str, method: str, status: int, error: str, seconds: float) -> None:
        """Counts one answer; ``error`` is the error code or empty."""
        self.requests.labels(route, method, str(status), error).inc()
        self.seconds.labels(route).observe(seconds)


class ClassifierMetrics:
    """What one classifier replica counts."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.texts = Counter("trialgate_texts", "Classified texts by model version.", ["version"], registry=registry)
        self.refused = Counter("trialgate_refused", "Requests refused, by error code.", ["code"], registry=registry)
        self.batch_texts = Histogram(
            "trialgate_batch_texts", "Texts in a forward pass.", buckets=_COUNTS, registry=registry
        )
        self.batch_tokens = Histogram(
            "trialgate_batch_tokens", "Tokens in a forward pass.", buckets=_TOKENS, registry=registry
        )
        self.queue = Histogram(
            "trialgate_queue_seconds", "Arrival of a text to its forward pass, seconds.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.forward = Histogram(
            "trialgate_forward_seconds", "One forward pass, seconds.", buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter("trialgate_tokens", "Tokens computed in forward passes.", registry=registry)
        self.queue_texts = Gauge("trialgate_queue_texts", "Texts that wait for a forward pass.", registry=registry)
        self.queue_tokens = Gauge("trialgate_queue_tokens", "Tokens that wait for a forward pass.", registry=registry)
        self.failed_batches = Counter("trialgate_failed_batches", "Forward passes that failed.", registry=registry)
        self.in_progress = Gauge("trialgate_texts_in_progress", "Texts admitted and not answered.", registry=registry)
        self.version = Gauge("trialgate_model_info", "1 for the version that is served.", ["version", "precision"],
                             registry=registry)  # fmt: skip
        self.swaps = Counter("trialgate_model_swaps", "Versions put to work, the first one too.", registry=registry)
        self.load_errors = Counter("trialgate_model_load_errors", "Versions that could not be loaded, tries.",
                                   registry=registry)  # fmt: skip
        self.poll_errors = Counter("trialgate_registry_errors", "Looks at the alias that failed.", registry=registry)

        self.explanations = Counter("trialgate_explanations", "Explained texts by model version.", ["version"],
                                    registry=registry)  # fmt: skip
        self.explanations_refused = Counter("trialgate_explanations_refused", "Explanations refused, by error code.",
                                            ["code"], registry=registry)  # fmt: skip
        self.explain = Histogram("trialgate_explain_seconds", "Computing one explanation, seconds.",
                                 buckets=_LONG_SECONDS, registry=registry)  # fmt: skip
        self.explanations_in_progress = Gauge("trialgate_explanations_in_progress", "Explanations admitted and not "
                                              "answered.", registry=registry)  # fmt: skip

    def observe_batch(self, record: BatchRecord) -> None:
        """Counts one forward pass."""
        self.batch_texts.observe(record.texts)
        self.batch_tokens.observe(record.tokens)
        self.tokens.inc(record.tokens)
        self.forward.observe(record.forward_s)
        for seconds in record.queue_s:
            self.queue.observe(seconds)
        if record.failed:
            self.failed_batches.inc()

    def serve_version(self, version: str, precision: str) -> None:
        """A version was put to work."""
        self.version.clear()
        self.version.labels(version, precision).set(1)
        self.swaps.inc()

    def watch_queue(self, texts: Callable[[], int], tokens: Callable[[], int]) -> None:
        """From now on the queue's length is what these say."""
        self.queue_texts.set_function(texts)
        self.queue_tokens.set_function(tokens)


def snapshot(registry: CollectorRegistry) -> list[Family]:
    """The registry's metrics as plain values, without the ``_created`` times of the library."""
    return [
        {
            "name": metric.name,
            "type": metric.type,
            "help": metric.documentation,
            "samples": [
                (sample.name, dict(sample.labels), sample.value)
                for sample in metric.samples
                if not sample.name.endswith("_created")
            ],
        }
        for metric in registry.collect()
    ]


def counters_only(families: Iterable[Family]) -> list[Family]:
    """What may be kept of a replica that is gone: what only ever grows."""
    return [family for family in families if family["type"] in ("counter", "histogram")]


def add(total: list[Family], more: Iterable[Family]) -> list[Family]:
    """``total`` with the samples of ``more`` added, series by series."""
    merged = {family["name"]: {**family, "samples": list(family["samples"])} for family in total}
    for family in more:
        known = merged.setdefault(family["name"], {**family, "samples": []})
        values = {(name, tuple(sorted(labels.items()))): value for name, labels, value in known["samples"]}
        for name, labels, value in family["samples"]:
            key = (name, tuple(sorted(labels.items())))
            values[key] = values.get(key, 0.0) + value
        known["samples"] = [(name, dict(labels), value) for (name, labels), value in values.items()]
    return list(merged.values())


class _Merged:
    """What ``generate_latest`` takes for a registry."""

    def __init__(self, snapshots: Mapping[tuple[str, str], list[Family]]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for (deployment, replica), families in sorted(self._snapshots.items()):
            for family in families:
                metric = metrics.get(family["name"])
                if metric is None:
                    metric = metrics[family["name"]] = Metric(family["name"], family["help"], family["type"])
                for name, labels, value in family["samples"]:
                    metric.add_sample(name, {"deployment": deployment, "replica": replica, **labels}, value)
        yield from metrics.values()


def render(snapshots: Mapping[tuple[str, str], list[Family]]) -> str:
    """One Prometheus text (format 0.0.4) of the snapshots by (deployment, replica)."""
    return generate_latest(_Merged(snapshots)).decode("utf-8")
