"""Puts the application together: classifiers that answer HTTP themselves, or gateways in front of them, and the board
that all report to.

``build`` is what Ray's deploy files and ``serve run serve_app.app:build config=FILE`` import. Everything is resolved
here, once: settings, paths and keys; the deployments get plain values.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from configs.loading import load_settings
from configs.schema import ServingConfig, Settings
from serve_app.api import digest_keys
from serve_app.autoscaling import policy
from serve_app.board import Board
from serve_app.gateway import GatewayReplica
from serve_app.replica import ClassifierReplica, ServiceReplica

APP_NAME = "trialgate"
_KEYS_VARIABLE = "SERVE_API_KEYS"
# Requests in work in one replica beyond what it admits, so that the replica itself can refuse, with our error.
_ROOM_TO_REFUSE = 64
# In work in one replica that answers HTTP: far more than are ever admitted, so that nothing queues before it.
_HTTP_REQUESTS = 4096
_OUR_ACCESS_LOG = {"enable_access_log": False}  # Serve's would say it again, with less
_REFUSED_BY_SERVE: dict[str, Any] = {"backpressure_config": {"status_code": 429, "retry_after_s": 1}}
# How often replicas tell their figures for autoscaling, and over how long these are averaged, seconds. Ray's 10 and 30
# would hold up every decision; its controller passes several times a second anyway.
_FIGURES_EVERY_S, _AVERAGED_S = 1.0, 5.0


def build(args: dict[str, Any]) -> Application:
    """The application for ``args``: ``config`` (bare name, absolute path or URL; default serving.yaml) and any
    setting by its dotted name, such as ``serving.max_replicas=2``. Raises ConfigError."""
    overrides = [
        f"{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in args.items()
        if name != "config"
    ]
    return application(load_settings(args.get("config", "serving.yaml"), overrides))


def application(settings: Settings) -> Application:
    """The application for resolved ``settings`` (see ``load_settings``), with the API keys of SERVE_API_KEYS and
    serving.api_key_digests."""
    serving = settings.serving
    plain = settings.model_dump(mode="json")
    drain: dict[str, Any] = {
        "graceful_shutdown_timeout_s": serving.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.2,
    }
    # Ray types what `deployment` returns as the decorator that it is without a class.
    board: Any = serve.deployment(
        Board,
        name="board",
        num_replicas=1,
        max_ongoing_requests=10_000,  # every replica has one call open all the time
        logging_config=_OUR_ACCESS_LOG,
        graceful_shutdown_timeout_s=min(2.0, serving.drain_timeout_s),
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": 0},
    )
    keys = digest_keys(os.environ.get(_KEYS_VARIABLE, "")) + serving.api_key_digests
    bound_board = board.bind()
    answers_http = serving.gateway_replicas == 0
    classifier: Any = serve.deployment(
        serve.ingress()(ServiceReplica) if answers_http else ClassifierReplica,
        name="classifier",
        max_ongoing_requests=_HTTP_REQUESTS if answers_http else serving.max_concurrent_texts + _ROOM_TO_REFUSE,
        max_queued_requests=_HTTP_REQUESTS if answers_http else _ROOM_TO_REFUSE,
        logging_config=_OUR_ACCESS_LOG,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": serving.cpus_per_replica, "num_gpus": serving.gpus_per_replica},
        max_surge_percent=serving.max_surge_percent,
        **_scale(serving),
        **(_REFUSED_BY_SERVE if answers_http else {}),
        **drain,
    )
    if answers_http:
        whole: Application = classifier.bind(plain, keys, bound_board)
        return whole
    # No CPU is reserved for the gateways: they wait most of the time, and two of them must fit beside two classifiers
    # on two cores.
    gateway: Any = serve.deployment(
        serve.ingress()(GatewayReplica),
        name="gateway",
        num_replicas=serving.gateway_replicas,
        max_ongoing_requests=_HTTP_REQUESTS,
        max_queued_requests=_HTTP_REQUESTS,
        logging_config=_OUR_ACCESS_LOG,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": 0},
        max_surge_percent=100,  # they need no CPU
        **_REFUSED_BY_SERVE,
        **drain,
    )
    bound: Application = gateway.bind(plain, keys, classifier.bind(plain, bound_board), bound_board)
    return bound


def start_draining(app_name: str = APP_NAME) -> None:
    """From now on the running application refuses predictions with 503 draining; what is in work is finished."""
    board: DeploymentHandle[Any] = serve.get_deployment_handle("board", app_name)
    # A throughput-optimized process expects an event loop of the caller's that goes on for ever.
    board._init(_run_router_in_separate_loop=True)
    board.drain.remote().result(timeout_s=5)


def _scale(serving: ServingConfig) -> dict[str, Any]:
    if serving.min_replicas == serving.max_replicas:
        return {"num_replicas": serving.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": serving.min_replicas,
            "max_replicas": serving.max_replicas,
            "target_ongoing_requests": serving.target_ongoing_requests,
            "upscale_delay_s": serving.upscale_delay_s,
            "downscale_delay_s": serving.downscale_delay_s,
            "metrics_interval_s": _FIGURES_EVERY_S,
            "look_back_period_s": _AVERAGED_S,
            "policy": {"policy_function": policy},
        }
    }
