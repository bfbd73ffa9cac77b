"""A registry with tiny real models and a running service, for the serving tests."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from configs.schema import Settings
from serve_app.mlflow_client import PRODUCTION, VERSION_F1
from tests.tiny import write_tiny_model

NAME = "trialgate-classifier"


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Registry:
    """Registers tiny models by hand, following the conventions of registered versions."""

    def __init__(self, uri: str, folder: Path) -> None:
        from mlflow import MlflowClient

        self.uri, self._folder = uri, folder
        self.client = MlflowClient(uri, uri)
        self._made = 0

    def register(self, spoil: Callable[[Path], None] = lambda folder: None, width: int = 16) -> str:
        """A new version that answers "positive" exactly for texts with "good" in them; ``spoil`` may break it."""
        import mlflow

        self._made += 1
        model = write_tiny_model(self._folder / f"model{self._made}", seed=self._made, rule=True, width=width)
        spoil(model)
        mlflow.set_tracking_uri(self.uri)
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow exports it, and later tests would obey it
        mlflow.set_registry_uri(self.uri)
        with mlflow.start_run():
            logged = mlflow.pyfunc.log_model(
                name="model", loader_module="serve_app.pyfunc_model", data_path=str(model), pip_requirements=[]
            )
            version = str(mlflow.register_model(logged.model_uri, NAME).version)
        self.client.set_model_version_tag(NAME, version, VERSION_F1, "0.9")
        return version

    def promote(self, version: str) -> None:
        """Moves the alias."""
        self.client.set_registered_model_alias(NAME, PRODUCTION, version)


@dataclass
class Service:
    """A running application and a client of it. ``before``: what it answered while there was no model; ``headers``: of
    every request, for instance a key."""

    url: str
    settings: Settings
    registry: Registry
    first_version: str = ""
    before: dict[str, httpx.Response] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Tests share it between threads; see ``client_core.http_options`` for the limits.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.client = httpx.Client(base_url=self.url, headers=self.headers, timeout=30, limits=limits)

    def predict(self, text: str = "a good movie", **fields: Any) -> httpx.Response:
        return self.client.post("/predict", json={"text": text, **fields})

    def info(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.get("/info").raise_for_status().json()
        return answer

    def versions(self) -> list[str | None]:
        """The version of every classifier replica."""
        return [replica["version"] for replica in self.info()["replicas"]]

    def wait_for_version(self, version: str, replicas: int, limit_s: float) -> float:
        """Seconds until all replicas serve ``version``."""
        return wait_until(lambda: self.versions() == [version] * replicas, limit_s, self.versions)


def wait_until(true: Callable[[], bool], limit_s: float, shown: Callable[[], Any] = lambda: "") -> float:
    """Seconds until ``true()``; fails after ``limit_s`` with ``shown()`` in the message."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < limit_s, f"not within {limit_s} s: {shown()}"
        time.sleep(0.05)
    return time.monotonic() - began


def copies(settings: Settings) -> list[str]:
    """The versions in the cache of a machine, whole or in part."""
    assert settings.serving.cache_dir is not None
    folders = [path for path in Path(settings.serving.cache_dir).glob("*/*") if path.is_dir()]
    return sorted(path.name.removeprefix(".").rpartition("-")[0] for path in folders)


def processes(name: str) -> list[psutil.Process]:
    """Those of the Ray that this process has started, by a part of their title."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if name in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def series_total(service: Service, name: str, **labels: str) -> float:
    """The sum of a metric over all its series that have these labels."""
    text = service.client.get("/metrics").raise_for_status().text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(
        sample.value for sample in samples if sample.name == name and set(labels.items()) <= set(sample.labels.items())
    )


class Hammer:
    """Context manager: threads that send requests without pause and keep what came of every one."""

    def __init__(self, service: Service, threads: int = 4) -> None:
        self._service, self._stop = service, threading.Event()
        self.failures: list[str] = []
        self.answers: list[tuple[float, str]] = []  # when (monotonic), version
        self.seconds: list[float] = []  # of the answers
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(1, threads + 1)]

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive()

    def wait_for_more(self) -> None:
        """Returns when further requests have been answered."""
        answered = len(self.answers)
        wait_until(lambda: len(self.answers) > answered + 20, 30)

    def _send(self, number: int) -> None:
        texts = ["a good movie", "an awful plot"] * 4
        path, body = ("/predict", {"text": texts[0]}) if number % 2 else ("/batch_predict", {"texts": texts})
        with httpx.Client(base_url=self._service.url, headers=self._service.headers, timeout=30) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    response = client.post(path, json=body)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if problem := self._problem(response):
                    self.failures.append(problem)
                else:
                    self.seconds.append(time.monotonic() - began)
                    self.answers.append((began + self.seconds[-1], response.headers["x-model-version"]))

    def _problem(self, response: httpx.Response) -> str:
        if response.status_code != 200:
            return f"{response.status_code} {response.text[:200]}"
        body = response.json()
        predictions = body.get("predictions", [body])
        expected = (["positive", "negative"] * 4)[: len(predictions)]
        if [prediction["label"] for prediction in predictions] != expected:
            return f"wrong labels: {json.dumps(body)[:200]}"
        versions = {prediction["model_version"] for prediction in predictions} | {response.headers["x-model-version"]}
        return f"several versions in one answer: {versions}" if len(versions) > 1 else ""
