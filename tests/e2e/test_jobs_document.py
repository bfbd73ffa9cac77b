"""The block of docs/jobs.md, as it stands there, on a machine of its own: namespaces for processes and network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parent.parent.parent
# `ray stop` ends every Ray that it sees, and the block's ports are Ray's own: in here it sees its own alone, and they
# are free.
MACHINE = ["unshare", "--map-root-user", "--pid", "--mount-proc", "--net", "--kill-child", "--fork"]
NETWORK = "ip link set lo up"
# The quickstart's search, in little. Ray's processes hand their environment to the jobs.
SMALLER = {"TRIALGATE_SEARCH__TRIALS": "1", "TRIALGATE_TRAINING__EPOCHS": "1", "TRIALGATE_GATE__MINIMUM_F1": "0.2"}


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path: those of Ray's sockets below it end at 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tg-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_the_block_works_as_it_stands(temporary: Path, tmp_path: Path) -> None:
    try:
        subprocess.run([*MACHINE, "sh", "-c", NETWORK], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("namespaces: this user may not make them")
    (block,) = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs" / "jobs.md").read_text("utf-8"), re.DOTALL)
    checkout, home = tmp_path / "checkout", tmp_path / "home"
    home.mkdir()
    for package in ("configs", "gate", "ray_jobs", "serve_app"):
        shutil.copytree(REPOSITORY / package, checkout / package)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment = {
        **kept,
        **SMALLER,
        "HOME": str(home),
        "RAY_TMPDIR": str(temporary),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [*MACHINE, "bash", "-euc", f"{NETWORK}\n{block}"],
        cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"Job '\w+' succeeded", done.stdout)
    assert "promoted: F1 " in done.stdout
    assert re.search(r"Stopped all \d+ Ray processes", done.stdout)
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert (checkout / ".trialgate" / "mlflow.db").is_file()
