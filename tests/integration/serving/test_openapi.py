"""The running service against its own OpenAPI document: schemathesis makes requests from it, and checks the replies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.serving.world import Service

pytestmark = pytest.mark.usefixtures("unharmed")
HERE = Path(__file__).parent


def test_every_route_is_as_the_document_says(service: Service, tmp_path: Path):
    """Every check that schemathesis has: statuses, media types, headers and bodies of replies as documented, valid
    requests answered, invalid ones and other methods refused, no server error."""
    program = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    finished = subprocess.run(
        [*program, f"--config-file={HERE / 'schemathesis.toml'}", "run", f"{service.url}/openapi.json", "--no-color"],
        cwd=tmp_path,  # it writes caches where it runs
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.integration.serving.schemathesis_hooks"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "7 selected / 7 total" in finished.stdout
    assert "Tested: 7" in finished.stdout
