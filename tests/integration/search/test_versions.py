"""A command or a node with another Ray or Python than the cluster's is kept out, and told both."""

from __future__ import annotations

import os
import platform
import re
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
from {module} import main
sys.exit(main())
"""


def run(module: str, arguments: list[str], version: tuple[str, str], **environment: str) -> tuple[int, str]:
    """The exit code of a command with another version, and what it said."""
    command = [sys.executable, "-c", PROGRAM.format(module=module, version=version), *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


HERE = (ray.__version__, platform.python_version())
OTHERS = pytest.mark.parametrize("other", [("2.59.1", HERE[1]), (HERE[0], "3.10.14")])


@OTHERS
def test_a_driver_of_another_version(other: tuple[str, str], ray_cluster: RayCluster, tmp_path: Path) -> None:
    sets = ["--set", "data.generator={texts: 240, test_texts: 80}", "--set", f"home={tmp_path / 'home'}"]
    arguments = ["--config", "quickstart.yaml", *sets]
    code, told = run("ray_jobs.search", arguments, other, RAY_ADDRESS=ray_cluster.address)
    assert code == ExitCode.UNREACHABLE, told
    cluster = f"the cluster runs Ray {HERE[0]} with Python {HERE[1]}"
    assert f"{cluster}, and this command Ray {other[0]} with Python {other[1]}." in told
    assert "Traceback" not in told


@OTHERS
def test_a_node_of_another_version(other: tuple[str, str], ray_cluster: RayCluster) -> None:
    """By Ray itself, before it has started anything there."""
    arguments = ["start", f"--address={ray_cluster.address}", "--num-cpus=1", "--disable-usage-stats"]
    before = len(ray.nodes())
    code, told = run("ray.scripts.scripts", arguments, other)
    assert code == 1, told
    assert "Version mismatch" in told
    for ray_version, python_version in (HERE, other):
        assert re.search(rf"Ray: {re.escape(ray_version)}\s+Python: {re.escape(python_version)}\n", told)
    assert len(ray.nodes()) == before
