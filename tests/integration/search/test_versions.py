"""A command with another Ray or Python than the cluster's is kept out, and told both."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from configs.exit_codes import ExitCode
from tests.conftest import RayCluster

# As a process with another Ray or Python reports itself: a second one cannot be installed here.
PROGRAM = """
import sys
import ray._private.utils
ray._private.utils.compute_version_info = lambda: {version!r}
from ray_jobs.search import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("other", [("2.59.1", platform.python_version()), (ray.__version__, "3.10.14")])
def test_a_driver_of_another_version(other: tuple[str, str], ray_cluster: RayCluster, tmp_path: Path) -> None:
    sets = ["--set", "data.generator={texts: 240, test_texts: 80}", "--set", f"home={tmp_path / 'home'}"]
    command = [sys.executable, "-c", PROGRAM.format(version=other), "--config", "quickstart.yaml", *sets]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.address}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.UNREACHABLE, done.stderr
    cluster = f"the cluster runs Ray {ray.__version__} with Python {platform.python_version()}"
    assert f"{cluster}, and this command Ray {other[0]} with Python {other[1]}." in done.stderr
    assert "Traceback" not in done.stderr
