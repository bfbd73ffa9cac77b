"""The servers that ``tests.benchmarks.serving`` compares, each as one process tree:

    python -m tests.benchmarks.serving_servers NAME MODEL_FOLDER PORT

``ours``     the product: the application of ``serve_app`` on a registry of its own, in HAProxy mode
``ours-int8`` the same with serving.precision int8
``serve-batch`` our engine with ``@serve.batch`` in place of our batcher
``fastapi``  what people write first: FastAPI, uvicorn, and a transformers pipeline called for each request
``tutorial`` what Ray Serve's documentation shows: ``@serve.batch`` around a transformers pipeline
``litserve`` LitServe with its dynamic batching around the same

All of the others get what helps them: a warm model, all cores for torch, batches of up to 32 texts, enough requests in
work, and inputs cut at the same length.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

BATCH = 32
_BATCH_WAIT_S = 0.01


def ours(folder: Path, port: int, **serving: Any) -> None:
    """Trialgate: registers ``folder`` and serves it; ``serving`` replaces settings of that section."""
    import ray
    from ray import serve

    from configs.schema import Settings
    from ray_jobs.cluster import connected
    from serve_app.app import APP_NAME, application

    home = tempfile.mkdtemp(prefix="tg-bench-")
    uri = f"sqlite:///{home}/mlflow.db"
    cores = len(os.sched_getaffinity(0))
    settings = Settings.model_validate(
        {
            "home": home,
            "tracking": {"uri": uri},
            "serving": {"cpus_per_replica": cores, "cache_dir": f"{home}/cache"} | serving,
        }
    )
    register(uri, folder, settings.tracking.model_name, settings.serving.alias)
    with connected(home):
        assert ray.is_initialized()
        serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        serve.run(application(settings), name=APP_NAME, route_prefix="/", blocking=False)
        threading.Event().wait()


def register(uri: str, folder: Path, name: str, alias: str) -> None:
    """Puts the saved-model ``folder`` under the alias of a new registry, as the gate would."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    with mlflow.start_run():
        logged = mlflow.pyfunc.log_model(
            name="model", loader_module="serve_app.pyfunc_model", data_path=str(folder), pip_requirements=[]
        )
        version = mlflow.register_model(logged.model_uri, name).version
    mlflow.MlflowClient(uri).set_registered_model_alias(name, alias, version)


def fastapi(folder: Path, port: int) -> None:
    """A plain service: one text at a time, in the framework's thread pool."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    classify = pipeline_of(folder)
    app = FastAPI()

    class Body(BaseModel):
        text: str

    def predict(body: Body) -> Any:
        return classify(body.text)[0]

    predict.__annotations__["body"] = Body  # the annotation is a string here, and FastAPI would not find the class
    app.post("/predict")(predict)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def tutorial(folder: Path, port: int) -> None:
    """Ray Serve as it comes, with its batching decorator."""
    import ray
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(ray_actor_options={"num_cpus": len(os.sched_getaffinity(0))}, max_ongoing_requests=200)
    class Classifier:
        def __init__(self) -> None:
            self._classify = pipeline_of(folder)

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=_BATCH_WAIT_S)
        async def batch(self, texts: list[str]) -> list[Any]:
            return self._classify(texts, batch_size=len(texts))

        async def __call__(self, request: Request) -> Any:
            return await self.batch((await request.json())["text"])

    ray.init(address="local", log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment: Any = Classifier
    serve.run(deployment.bind(), route_prefix="/predict")
    threading.Event().wait()


def serve_batch(folder: Path, port: int) -> None:
    """Our engine in its process, lanes and HAProxy mode, but ``@serve.batch`` in place of our batcher, and none of our
    HTTP layer."""
    import ray
    from ray import serve
    from starlette.requests import Request

    from ray_jobs.cluster import connected
    from serve_app.engine_process import EngineProcess
    from serve_app.lanes import Lanes

    cores = len(os.sched_getaffinity(0))

    @serve.deployment(ray_actor_options={"num_cpus": cores}, max_ongoing_requests=200)
    class Classifier:
        def __init__(self) -> None:
            engines = EngineProcess()
            self._engine, self._lanes = engines.load(folder, "auto", "cpu"), Lanes(cores, engines.prepare)
            self._lanes.warm_up(self._engine.warm_up)

        @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=_BATCH_WAIT_S, max_concurrent_batches=cores)
        async def batch(self, texts: list[str]) -> list[Any]:
            tokens = self._engine.tokenize(texts).tokens
            forward = lambda: (self._engine.forward(list(tokens)), int(tokens.offsets[-1]))  # noqa: E731
            found = await self._lanes.run(forward, alone=len(texts) == 1)
            return [{"probabilities": row.tolist()} for row in found]

        async def __call__(self, request: Request) -> Any:
            return await self.batch((await request.json())["text"])

    with connected(tempfile.mkdtemp(prefix="tg-bench-")):
        assert ray.is_initialized()
        serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
        deployment: Any = Classifier
        serve.run(deployment.bind(), route_prefix="/predict")
        threading.Event().wait()


def litserve(folder: Path, port: int) -> None:
    """LitServe with dynamic batching."""
    import litserve

    from tests.benchmarks.litserve_api import Api

    api = Api(folder, max_batch_size=BATCH, batch_timeout=_BATCH_WAIT_S, api_path="/predict")
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="error")


def pipeline_of(folder: Path) -> Callable[..., Any]:
    """transformers' pipeline on the folder, warm, with texts cut at the model's length."""
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    transformers.logging.set_verbosity_error()
    max_length = json.loads((folder / "trialgate.json").read_text(encoding="utf-8"))["max_length"]
    classify = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    run: Callable[..., Any] = lambda texts, **more: classify(texts, truncation=True, max_length=max_length, **more)  # noqa: E731
    run(["warm"] * 2, batch_size=2)
    return run


def ours_int8(folder: Path, port: int, **serving: Any) -> None:
    """Trialgate with the linear layers in int8."""
    ours(folder, port, **{"precision": "int8"} | serving)


SERVERS = {
    "ours": ours,
    "ours-int8": ours_int8,
    "serve-batch": serve_batch,
    "fastapi": fastapi,
    "tutorial": tutorial,
    "litserve": litserve,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    name, folder, port, *options = sys.argv[1:] if arguments is None else arguments
    more = {key: json.loads(value) for key, _, value in (option.partition("=") for option in options)}
    SERVERS[name](Path(folder), int(port), **more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
