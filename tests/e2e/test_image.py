"""The Dockerfile's own RUN lines on a clean Debian root, and its CMD serving a model there as its own user."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image import Image, Run, cannot_build, main_process, pip_conf_of_this_machine
from tests.integration.serving.world import Registry, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# What is pushed and pulled for every change of the code, and the rest, with a CPU build of torch. Bytes, unpacked.
PROJECT_LAYERS_AT_MOST, IMAGE_AT_MOST = 5e6, 2.3e9


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    reason = cannot_build()
    if reason is not None:
        pytest.skip(f"image: {reason}")
    with tempfile.TemporaryDirectory(prefix="tg-image-", dir="/tmp") as folder:
        yield Image(Path(folder), pip_conf_of_this_machine(Path(folder) / "pip.conf"), {"TORCH_BUILD": "cpu"})


def test_it_is_small_where_it_changes(image: Image) -> None:
    sizes = {told: size for told, size in image.layers if size}
    print("\n".join(f"{size / 1e6:8.1f} MB  {told[:100]}" for told, size in sizes.items()))
    (dependencies,) = [size for told, size in sizes.items() if "--from=build" in told]
    assert sum(sizes.values()) < IMAGE_AT_MOST
    assert sum(sizes.values()) - dependencies < PROJECT_LAYERS_AT_MOST


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["python", "-m", "ray_jobs.pipeline", "--help"], "--config"),
        (["python", "-m", "gate", "--help"], "rollback"),
        (["mlflow", "server", "--help"], "--allowed-hosts"),
        (["python", "-c", "import boto3, psycopg, s3fs, torch; print(torch.zeros(1).item())"], "0.0"),
        (["bash", "--login", "-c", "command -v ray"], "/opt/trialgate/bin/ray"),
        (["sh", "-c", "id -u; touch /opt/trialgate/written || echo refused"], "1000\nrefused"),
        (["sh", "-c", "test ! -e /source && test ! -e /wheels/* && cat /run/secrets/* 2>&1; echo end"], "end"),
    ],
    ids=["jobs", "gate", "mlflow", "libraries", "login shell", "user", "nothing left"],
)
def test_it_has_what_its_containers_run(image: Image, command: list[str], told: str) -> None:
    done = image.run(*command)
    assert told in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_its_command_serves_the_model_in_production(image: Image, tmp_path: Path, tracking_uri: str) -> None:
    registry = Registry(tracking_uri, tmp_path)
    version = registry.register()
    registry.promote(version)
    for path in [tmp_path, *tmp_path.rglob("*")]:
        os.chown(path, 1000, 1000)
    log = tmp_path / "service.log"
    with log.open("wb") as output:
        environment = {"MLFLOW_TRACKING_URI": registry.uri}
        run = Run(image.command, [(tmp_path, str(tmp_path))], environment, own_network=True)
        process = image.start(run, stdout=output, stderr=subprocess.STDOUT)
        try:
            alive = lambda: image.enter(process, image.healthcheck, {}).returncode == 0  # noqa: E731
            wait_until(alive, 300, log.read_text)
            smoke = image.enter(process, ["python", "-m", "serve_app.smoke", "--version", version], {})
            assert smoke.returncode == 0, smoke.stderr + log.read_text()
            main_process(process).send_signal(signal.SIGINT)  # STOPSIGNAL
            process.wait(timeout=90)
        finally:
            process.kill()
            process.wait()
    assert "Traceback" not in log.read_text(), log.read_text()
