"""CI's check of skipped tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parents[3] / ".ci"
REPORT = """<testsuites><testsuite><testcase classname="a" name="t"/>
<testcase classname="a" name="u"><skipped type="pytest.skip" message="{reason}"/></testcase></testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("real data: set TRIALGATE_SHARED to the folder", 0),
        ("needs a CUDA device", 0),
        ("no internet", 1),
        ("Broken; real data: set TRIALGATE_SHARED", 1),
    ],
)
def test_a_skip_needs_an_allowed_reason(reason: str, code: int, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT.format(reason=reason), encoding="utf-8")
    command = [sys.executable, str(CI / "unexpected_skips.py"), str(CI / "allowed-skips"), str(report)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == code, process.stderr
    assert f"a::u: {reason}" in process.stdout


def test_ci_is_a_program_that_stops_at_the_first_failure() -> None:
    script = CI / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)
