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


def test_on_a_slow_machine_tests_that_would_begin_too_late_are_skipped_and_said_to_be(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    test = "tests/unit/house/test_ci.py::test_ci_is_a_program_that_stops_at_the_first_failure"
    for limit, skips in (("-1", "1 skipped, 0 of them"), ("600", "0 skipped, 0 of them")):
        command = [sys.executable, "-m", "pytest", "-q", f"--begin-within={limit}", f"--junitxml={report}", test]
        subprocess.run(command, cwd=CI.parent, check=True, timeout=120, stdout=subprocess.DEVNULL)
        listed = [sys.executable, CI / "unexpected_skips.py", CI / "allowed-skips", report]
        assert skips in subprocess.run(listed, check=True, timeout=60, capture_output=True, text=True).stdout
