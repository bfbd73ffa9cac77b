"""``make quickstart``, as the command that it runs: the whole loop, and what is left when it ends."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from configs.exit_codes import ExitCode
from tests.e2e.processes import Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# A search that is small enough to be run once more; its models answer, but not well.
SMALL = {
    "TRIALGATE_DATA__GENERATOR__TEXTS": "400",
    "TRIALGATE_DATA__GENERATOR__TEST_TEXTS": "200",
    "TRIALGATE_TRAINING__EPOCHS": "1",
    "TRIALGATE_SEARCH__TRIALS": "2",
    "TRIALGATE_GATE__MINIMUM_F1": "0.0",
    "RAY_AUTH_MODE": "token",
}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """The embedded default, which has ended, and the directory that it was run in."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = Command("ray_jobs.quickstart", cwd=folder, environment={"ONCE": "1", "RAY_AUTH_MODE": "token"})
    assert command.finished(600) == ExitCode.OK, command.output
    return folder, command


def test_whole_loop_on_the_embedded_default(first: tuple[Path, Command]) -> None:
    folder, command = first
    assert "'This movie was absolutely fantastic!' -> positive" in command.output
    assert "'This movie was not good at all.' -> negative" in command.output
    assert "no production model yet" in command.output
    found = re.search(r"promoted: version 1, test F1 (0\.\d+)", command.output)
    assert found is not None
    assert 0.87 < float(found[1]) < 0.99
    assert 0.5 * 1024**3 < command.peak_bytes < 4 * 1024**3
    assert command.left_behind(5) == []
    assert [path.name for path in folder.iterdir()] == [".trialgate"]
    token = folder / ".trialgate" / "ray_auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_its_model_scores_files_as_the_document_says(first: tuple[Path, Command], tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "batch_score.md").read_text(encoding="utf-8")
    block = re.search(r"```bash\n(.*?)```", document, re.DOTALL)
    assert block is not None
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", block[1].replace("/tmp/", f"{tmp_path}/")],
        cwd=first[0], env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "dry run: nothing was computed and nothing written" in done.stdout
    rows = list(csv.DictReader(done.stdout[done.stdout.index('"id","text",') :].splitlines()))
    assert [(row["id"], row["prediction_label"]) for row in rows] == [("1", "positive"), ("2", "negative")]


def _comes_up(url: str, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            threading.Event().wait(0.5)
    return False


def test_second_run_compares_and_serving_ends_with_ctrl_c(first: tuple[Path, Command]) -> None:
    second = Command("ray_jobs.quickstart", cwd=first[0], environment=SMALL)
    second.wait_for("serving until Ctrl-C", 400)
    assert re.search(r"production had 0\.\d+|Production stays version 1", second.output)
    api = re.search(r"api +(http://127\.0\.0\.1:\d+)", second.output)
    mlflow = re.search(r"mlflow +(http://127\.0\.0\.1:\d+)", second.output)
    assert api is not None
    assert mlflow is not None
    with urllib.request.urlopen(f"{api[1]}/health", timeout=10) as answer:
        assert json.load(answer) == {"status": "ok"}
    assert _comes_up(mlflow[1], 60)
    sessions = set(Path("/tmp").glob("tg-*"))
    second.send(signal.SIGINT)
    assert second.finished(12) == ExitCode.OK, second.output
    assert "draining" in second.output
    assert second.left_behind(5) == []
    assert len(set(Path("/tmp").glob("tg-*")) & sessions) < len(sessions), "Ray's session folder is still there"
