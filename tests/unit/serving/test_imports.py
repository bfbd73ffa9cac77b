"""What each part of the service has to load."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("serve_app.app", "torch"),  # what builds the application on a cluster
        ("serve_app.classifier", "torch"),  # it is in the engine's process
        ("serve_app.gateway", "torch"),
        ("serve_app.gateway", "mlflow"),
        ("serve_app.api", "ray"),
        ("serve_app.batcher", "ray"),
        ("serve_app.client", "ray"),
        ("serve_app.client", "torch"),
        ("serve_app.smoke", "ray"),
        ("serve_app.smoke", "mlflow"),
    ],
)
def test_parts_do_not_load_what_they_do_not_use(module: str, without: str):
    check = f"import sys, {module}; sys.exit({without!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=120).returncode == 0
