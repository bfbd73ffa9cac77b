"""What pyproject.toml asks for, what constraints.txt pins, and what the code imports agree."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[3]
PACKAGES = ("configs", "serve_app", "gate", "ray_jobs")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))

# Read by other programs, from a checkout: they need not be installed.
FOR_OTHERS = {"configs/grafana", "configs/kubernetes"}
# Declared without an import of ours that shows it.
NOT_IMPORTED = {
    "cmaes": "Optuna's CmaEsSampler imports it",
    "scipy": "Optuna's GPSampler imports it",
    "greenlet": "Optuna's GPSampler imports it",
    "optuna": "Ray Tune's OptunaSearch imports it",
}
# Imported where it is there; else the command says which extra brings it.
OPTIONAL = {"botocore": "s3"}


def requirements(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        lines += PROJECT["project"]["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, Version]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s=]+)", line)
            assert match, f"constraints.txt: '{line}' is no plain pin"
            found[canonicalize_name(match[1])] = Version(match[2])
    return found


def test_every_requirement_is_pinned_within_its_range() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for requirement in requirements(*extras):
        pin = pins().get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not pin {requirement.name}: run make lock"
        assert pin in requirement.specifier, f"{requirement.name} {pin} is outside {requirement.specifier}: make lock"


def test_every_dependency_of_a_dependency_is_pinned() -> None:
    """Walks what is installed, from our requirements down."""
    pinned = pins()
    waiting = [(requirement, frozenset(requirement.extras)) for requirement in requirements("dev")]
    seen = set()
    while waiting:
        requirement, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extras) in seen or name.startswith(("nvidia-", "cuda-", "triton")):  # torch's build brings these
            continue
        seen.add((name, extras))
        assert name in pinned, f"{name} is installed and not pinned: run make lock"
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                waiting.append((needed, frozenset(needed.extras)))


def test_constraints_hold_nothing_of_one_machine() -> None:
    for name, pin in pins().items():
        assert pin.local is None, f"{name}=={pin}: which build is the index's choice"


def test_the_tests_run_on_the_pinned_versions() -> None:
    pinned = pins()
    for requirement in requirements("dev"):
        installed = Version(Version(importlib.metadata.version(requirement.name)).public)
        assert installed == pinned[canonicalize_name(requirement.name)], f"{requirement.name} {installed} is installed"


def test_transformers_is_what_mlflow_is_tested_with() -> None:
    from mlflow.ml_package_versions import _ML_PACKAGE_VERSIONS

    tested = _ML_PACKAGE_VERSIONS["transformers"]["models"]
    pin = pins()["transformers"]
    assert Version(tested["minimum"]) <= pin <= Version(tested["maximum"])
    highest = next(item for item in requirements() if item.name == "transformers").specifier
    assert Version(tested["maximum"]) in highest
    assert Version(f"{Version(tested['maximum']).major}.{Version(tested['maximum']).minor + 1}") not in highest


def _imported() -> dict[str, set[str]]:
    """Top-level modules of other projects that our packages import, and where."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    modules = [node.module or ""]
                else:
                    continue
                for module in modules:
                    top = module.partition(".")[0]
                    if top not in sys.stdlib_module_names and top not in PACKAGES:
                        found.setdefault(top, set()).add(str(path.relative_to(REPOSITORY)))
    return found


def test_what_is_imported_is_declared() -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    declared |= OPTIONAL.keys() & {requirement.name for requirement in requirements(*OPTIONAL.values())}
    distributions = importlib.metadata.packages_distributions()
    missing = {
        module: sorted(where)
        for module, where in _imported().items()
        if not declared & {canonicalize_name(name) for name in distributions.get(module, [])}
    }
    assert not missing


def test_what_is_declared_is_used() -> None:
    distributions = importlib.metadata.packages_distributions()
    used = {canonicalize_name(name) for module in _imported() for name in distributions.get(module, [])}
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    assert not declared - used - set(NOT_IMPORTED)


def test_extras_are_not_needed_by_the_core() -> None:
    core = {canonicalize_name(requirement.name) for requirement in requirements()}
    for extra, lines in PROJECT["project"]["optional-dependencies"].items():
        twice = core & {canonicalize_name(Requirement(line).name) for line in lines}
        assert not twice, f"{twice} stands in the core and in extra {extra}"


def test_every_file_that_the_packages_need_is_installed() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc"):
                continue
            if str(path.parent.relative_to(REPOSITORY)) in FOR_OTHERS:
                continue
            owner = ".".join(path.parent.relative_to(REPOSITORY).parts)
            matches = any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns.get(owner, []))
            assert matches, f"{path.relative_to(REPOSITORY)} is in no package-data of pyproject.toml"


def test_every_folder_with_code_is_a_package() -> None:
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent.relative_to(REPOSITORY)} has no __init__.py"


@pytest.mark.parametrize("minimum", ["3.11"])
def test_python_floor_is_the_one_the_tools_check(minimum: str) -> None:
    assert PROJECT["project"]["requires-python"] == f">={minimum}"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + minimum.replace(".", "")
    assert PROJECT["tool"]["mypy"]["python_version"] == minimum
