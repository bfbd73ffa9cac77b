"""The checkers that the extra ``ship`` brings, and what the tests here read."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGE = f"trialgate:{PROJECT['version']}"
# Names of variables and keys whose values are secrets.
SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN(?!_PATH)|ACCESS_KEY|API_KEY")
PINNED_BY_DIGEST = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")


def text(path: str) -> str:
    """A file of the repository."""
    return (REPOSITORY / path).read_text(encoding="utf-8")


def documents(path: str) -> list[Any]:
    """The YAML documents of a file of the repository."""
    return list(yaml.safe_load_all(text(path)))


def lint(tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a checker in the repository; skips the test where it is not installed."""
    programs = Path(sys.executable).parent
    program = programs / tool
    if not program.is_file():
        pytest.skip(f"{tool} is not installed: pip install -e '.[ship]'")
    # jactionlint looks for shellcheck in PATH.
    environment = {**os.environ, "NO_COLOR": "1", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([program, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def module(name: str) -> None:
    """Skips the test where a checker that is a module is not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[ship]'")


def vendored_schema(name: str) -> Any:
    """check-jsonschema's copy of a JSON schema."""
    module("check_jsonschema")
    folder = importlib.resources.files("check_jsonschema.builtin_schemas.vendor")
    return json.loads(folder.joinpath(f"{name}.json").read_text(encoding="utf-8"))
