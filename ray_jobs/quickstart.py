"""The main job on the embedded default, from nothing to an answer over HTTP.

    python -m ray_jobs.quickstart        (``make quickstart``; with ONCE=1 it ends after the first answers)

Search -> gate -> registration -> service -> two predictions; then it serves, with MLflow's UI beside it, until Ctrl-C.
Everything lies in one folder, ``.trialgate``, except Ray's session, which goes when this process does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from configs.exit_codes import CommandFailed, ExitCode
from configs.loading import load_settings
from configs.schema import Settings
from gate.decision import Decision
from ray_jobs.cluster import Cluster, connected, free_port, starts_locally
from ray_jobs.command import say
from ray_jobs.pipeline import document, run_pipeline
from serve_app.console import run_command
from serve_app.mlflow_client import connect, redact

TEXTS = ("This movie was absolutely fantastic!", "This movie was not good at all.")
_DESCRIPTION = """\
Search -> gate -> registration -> service -> two predictions, on the built-in data (quickstart.yaml), without a hub,
a server or a GPU. Then it serves on loopback, with MLflow's UI and Ray's dashboard beside it, until Ctrl-C.
Everything it writes lies in .trialgate of the current directory: run it again, and the new winner is compared with
the model in production. It takes no arguments."""
_ENVIRONMENT = """\
environment:
  ONCE=1                       end after the first predictions instead of serving
  TRIALGATE_SECTION__FIELD=X   change one setting, for example TRIALGATE_SEARCH__TRIALS=2
  RAY_ADDRESS=auto             use the Ray that runs on this machine instead of starting one

exit codes: 0 done (Ctrl-C while it serves, too); 1 failed; 2 bad settings; 3 blocked by the gate, nothing to serve;
4 MLflow, Ray or storage cannot be reached; 130 interrupted before it served"""
_MLFLOW_PORT = 5000
# A shell that ends its whole process group when its standard input closes, which happens however this process dies.
_GUARDED = ("/bin/sh", "-c", '"$@" </dev/null & cat >/dev/null; kill -KILL 0', "guard")
_READY_SECONDS = 90.0
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is not behind a proxy
_END_SECONDS = 9.0


def quickstart(once: bool) -> tuple[dict[str, Any], list[str], int]:
    """Runs the loop and, unless ``once``, serves until Ctrl-C. Returns the pipeline's document."""
    started = time.monotonic()
    settings = load_settings("quickstart.yaml")
    os.environ.setdefault("MPLCONFIGDIR", f"{settings.home}/matplotlib")  # its font cache would go to HOME
    local = starts_locally()
    with connected(settings.home) as cluster:
        result, decision = run_pipeline(settings)
        found = document(result, decision, time.monotonic() - started)
        if not decision.passed and decision.baseline_version is None:
            say(f"blocked: {decision.reason}. There is no production version to serve; this run differs by chance from "
                "others (two trials at a time), so run it again, or lower TRIALGATE_GATE__MINIMUM_F1")  # fmt: skip
            return found, [], ExitCode.BLOCKED
        say(_verdict(decision))
        mlflow_ui, serving = _mlflow_ui(settings, once, result.parent_run_id), _serving(settings, local)
        with _ended_in_time(), mlflow_ui as mlflow_line, serving as url:
            answers = [_predict(url, text) for text in TEXTS]
            for line in _summary(answers, url, cluster, mlflow_line, settings, time.monotonic() - started):
                say(line)
            if not once:
                _wait_for_interrupt()
    return {**found, "predictions": answers}, [], ExitCode.OK


def _verdict(decision: Decision) -> str:
    if decision.passed:
        compared = "" if decision.baseline_f1 is None else f" (production had {decision.baseline_f1:.4f})"
        return f"promoted: version {decision.production_version}, test F1 {decision.f1:.4f}{compared}"
    return f"blocked: {decision.reason}. Production stays version {decision.baseline_version}, which is served now"


@contextlib.contextmanager
def _serving(settings: Settings, local: bool) -> Iterator[str]:
    """The service on loopback, ready; yields its address, drains it at the end. ``local``: Ray ends soon after."""
    from ray import serve

    from serve_app.app import APP_NAME, application, start_draining

    port = free_port(settings.serving.port, "the service")
    say("starting the service")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its clients tell of every step
    serve.start(
        http_options={"host": "127.0.0.1", "port": port},
        proxy_location="HeadOnly",
        logging_config={"enable_access_log": False},  # of Ray's proxy; the application has its own
    )
    serve.run(application(settings), name=APP_NAME, route_prefix="/", blocking=False)
    url = f"http://127.0.0.1:{port}"
    _wait_until_ready(url)
    try:
        yield url
    finally:
        try:
            start_draining(APP_NAME)
        finally:
            # Serve's own end kills the controller that it waits for, which Ray tells as errors.
            if local:
                serve.delete(APP_NAME)
            else:
                serve.shutdown()


@contextlib.contextmanager
def _mlflow_ui(settings: Settings, once: bool, parent_run_id: str) -> Iterator[str]:
    """MLflow's UI on loopback while we serve; yields the lines that say where it is or how to start it, and where the
    search is there: the UI begins in a view for language models, which has no list of runs."""
    uri = settings.tracking.uri
    assert uri is not None
    if uri.startswith("http"):
        yield f"{'mlflow':<12}{redact(uri)}"
        return
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1"]
    if once:
        shown = f"{sys.executable} -m mlflow ui --backend-store-uri {redact(uri)} --host 127.0.0.1"
        yield f"{'mlflow':<12}{shown} --port {_MLFLOW_PORT}"
        return
    port = free_port(_MLFLOW_PORT, "MLflow's UI")
    guard = subprocess.Popen(
        [*_GUARDED, *command, "--port", str(port), "--workers", "1"],
        env={**os.environ, "MLFLOW_BACKEND_STORE_URI": uri},  # not an argument, which everybody on the machine sees
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        experiment = connect(settings.tracking).get_run(parent_run_id).info.experiment_id
        search = f"{url}/#/experiments/{experiment}/runs/{parent_run_id}?workflowType=machine_learning"
        yield f"{'mlflow':<12}{url}\n{'search':<12}{search}"
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait()


def _summary(
    answers: list[dict[str, Any]], url: str, cluster: Cluster, mlflow_line: str, settings: Settings, seconds: float
) -> list[str]:
    lines = [""]
    for text, answer in zip(TEXTS, answers, strict=True):
        lines.append(f"  {text!r} -> {answer['label']} ({answer['score']:.3f}, version {answer['model_version']})")
    lines += ["", f"{'api':<12}{url}   (try it in a browser; documentation at {url}/docs)", mlflow_line]
    if cluster.dashboard_url:
        token = os.environ.get("RAY_AUTH_TOKEN_PATH")
        how = f"   (token: cat {token})" if token else ""
        lines.append(f"{'dashboard':<12}{cluster.dashboard_url}{how}")
    lines.append(f"{'files':<12}{settings.home}   (make clean removes them)")
    lines.append(f"done in {seconds:.0f} s")
    return lines


def _wait_for_interrupt() -> None:
    say("serving until Ctrl-C")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    say("draining: requests in work are finished, then everything ends (Ctrl-C again: at once)")


@contextlib.contextmanager
def _ended_in_time() -> Iterator[None]:
    """Once the end has begun, another Ctrl-C or too long a wait ends this process, and with it all it started."""

    def end(number: int, frame: object) -> None:
        os._exit(0)  # the guards of Ray and of MLflow's UI end what this process started

    def begin(number: int, frame: object) -> None:
        for signal_number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(signal_number, end)
        signal.setitimer(signal.ITIMER_REAL, _END_SECONDS)
        raise KeyboardInterrupt

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, begin)
    # The handlers stay: what is left after this, Ray's own end, is inside the same time.
    yield


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    problem: object = None
    while time.monotonic() < deadline:
        try:
            with _direct.open(f"{url}/ready", timeout=5) as response:
                if response.status == 200:
                    return
        except urllib.error.HTTPError as error:
            problem = error.read().decode("utf-8", "replace")
        except OSError as error:
            problem = error
        threading.Event().wait(0.2)
    raise CommandFailed(f"the service at {url} was not ready after {_READY_SECONDS:.0f} s: {problem}")


def _predict(url: str, text: str) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    key = os.environ.get("SERVE_API_KEYS", "").split(",")[0].strip()
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{url}/predict", json.dumps({"text": text}).encode(), headers)
    with _direct.open(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def main() -> int:
    """The command line: no arguments, ONCE=1 in the environment ends it after the first answers."""
    argparse.ArgumentParser(
        prog="python -m ray_jobs.quickstart",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_DESCRIPTION,
        epilog=_ENVIRONMENT,
    ).parse_args()
    once = os.environ.get("ONCE", "") not in ("", "0")
    return run_command(lambda: quickstart(once), as_json=False, json_file=None)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything has ended. Taking the interpreter apart is another second of the processor, several where it is busy,
    # in which nobody handles the alarm and another Ctrl-C any more.
    os._exit(code)
