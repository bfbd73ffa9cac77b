"""Errors become exit codes, and standard output stays one JSON document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from configs.loading import ConfigError
from gate.__main__ import main
from gate.decision import GateUsageError
from serve_app.console import run_command
from serve_app.mlflow_client import TrackingUnavailable


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateUsageError("no such run"), 2),
        (ConfigError("no such key"), 2),
        (TrackingUnavailable("no server"), 4),
        (requests.ConnectionError("lost"), 4),
        (TimeoutError("storage"), 4),
        (KeyboardInterrupt(), 130),
        (RuntimeError("a bug"), 1),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> tuple[dict[str, Any], list[str], int]:
        print("a library says something")
        raise error

    target = tmp_path / "out.json"
    assert run_command(work, as_json=True, json_file=str(target)) == code
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["exit_code"] == code
    assert json.loads(target.read_text()) == document
    assert "a library says something" in err
    assert "Traceback" not in out
    if code in (2, 4):
        assert str(error) in document["error"]


def test_lost_connection_behind_another_error_is_unreachable() -> None:
    def work() -> tuple[dict[str, Any], list[str], int]:
        try:
            raise requests.ConnectionError("refused")
        except requests.ConnectionError:
            raise RuntimeError("what MLflow makes of it")  # noqa: B904

    assert run_command(work, as_json=False, json_file=None) == 4


def test_json_file_is_refused_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> tuple[dict[str, Any], list[str], int]:
        raise AssertionError("must not run")

    for bad in (str(tmp_path / "no" / "out.json"), str(tmp_path), "nosuchprotocol://x/y"):
        assert run_command(work, as_json=False, json_file=bad) == 2
        assert bad in capsys.readouterr().err


def test_output_of_child_processes_stays_out_of_the_document() -> None:
    program = (
        "import os, sys\n"
        "from serve_app.console import run_command\n"
        "def work():\n"
        "    os.system('echo from a child')\n"
        "    os.write(1, b'from the C level')\n"
        "    return {'a': 1}, [], 0\n"
        "sys.exit(run_command(work, as_json=True, json_file=None))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"a": 1}
    assert "from a child" in done.stderr
    assert "from the C level" in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["check"],
        ["promote", "--run-id", "a", "--version", "1"],
        ["rollback", "--force"],
        ["status", "--blocked-ok"],
        ["prune", "--keep", "3", "--blocked-ok"],
        ["card", "--blocked-ok"],
        ["replay", "decision.json", "--blocked-ok"],
    ],
)
def test_bad_usage_is_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2


def test_force_without_reason_is_2_before_anything_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for extra in ([], ["--reason", "  "]):
        assert main(["promote", "--run-id", "x", "--force", *extra]) == 2
        assert "--reason" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--set", "gate.minimum=0.5"]) == 2
    assert "gate.minimum_f1" in capsys.readouterr().err
    assert main(["status", "--config", "no-such.yaml"]) == 2
