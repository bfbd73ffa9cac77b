"""The floors: who may import whom, and what importing may do."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
FLOORS = {"configs": 1, "serve_app": 2, "gate": 3, "ray_jobs": 4}

# What `--help`, a refused config or a status must not wait for: torch alone takes seconds to import.
LIGHT = [
    "configs.loading",
    "configs.schema",
    "gate.__main__",
    "gate.decision",
    "ray_jobs.search",
    "ray_jobs.pipeline",
    "ray_jobs.baselines",
    "ray_jobs.batch_score",
]
HEAVY = {"torch", "transformers", "datasets", "sklearn", "matplotlib.pyplot"}


def sources() -> list[Path]:
    return sorted(path for package in FLOORS for path in (REPOSITORY / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[tuple[int, str, str | None]]:
    """(line, module, name) of every import, wherever it stands; name is None for ``import module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)


def local_names(tree: ast.AST) -> dict[str, str]:
    """Names that stand for a module or object of one of our packages, and that package."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.partition(".")[0]] = alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = node.module.partition(".")[0]
    return {name: package for name, package in names.items() if package in FLOORS}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_attributes(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """(line, package, name) of every ``thing._private`` where ``thing`` was imported from one of our packages."""
    ours = local_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in ours:
                yield node.lineno, ours[root.id], node.attr


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_only_go_down(path: Path) -> None:
    package = module_name(path).partition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for line, module, name in imports(tree):
        top = module.partition(".")[0]
        where = f"{path.relative_to(REPOSITORY)}:{line}: {module}" + (f" import {name}" if name else "")
        assert top != "tests", f"{where}: the product needs no tests"
        if top in FLOORS and top != package:
            assert FLOORS[top] < FLOORS[package], f"{where}: {package} stands below {top}"
            private = [part for part in (*module.split("."), name or "") if is_private(part)]
            assert not private, f"{where}: {private[0]} is private to {top}"
    for line, owner, name in private_attributes(tree):
        assert owner == package, f"{path.relative_to(REPOSITORY)}:{line}: {name} is private to {owner}"


def test_the_packages_are_the_four() -> None:
    found = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert found - {"tests"} == set(FLOORS)


def _run_python(code: str, folder: Path) -> str:
    home = folder / "home"
    home.mkdir()
    (folder / "work").mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "TMPDIR": str(folder),
    }
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "work", env=environment, capture_output=True, text=True, timeout=240
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    """All modules at once, in a process of their own: no file, no Ray, no logging set up, no environment changed."""
    modules = [name for name in map(module_name, sources()) if not name.endswith("__main__")]
    code = f"""
import importlib, json, logging, os, signal, threading
for name in {modules!r}:
    before = dict(os.environ)
    handlers = list(logging.getLogger().handlers)
    interrupt = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    importlib.import_module(name)
    # Libraries set variables of their own when they are first imported; ours must not.
    changed = [key for key in os.environ if before.get(key) != os.environ[key]]
    changed = [key for key in changed if key.startswith(("TRIALGATE", "MLFLOW", "RAY_AUTH", "HF_"))]
    assert not changed, (name, changed)
    assert logging.getLogger().handlers == handlers, name
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == interrupt, name
import ray
assert not ray.is_initialized()
print(json.dumps({{"cwd": os.getcwd(), "threads": [thread.name for thread in threading.enumerate()]}}))
"""
    state = json.loads(_run_python(code, tmp_path).splitlines()[-1])
    assert state["cwd"] == str(tmp_path / "work")
    assert not [name for name in state["threads"] if "trialgate" in name.lower()]
    assert not list((tmp_path / "work").iterdir())
    # matplotlib, triton and such keep caches under HOME; nothing of ours may.
    ours = [path for path in (tmp_path / "home").rglob("*") if "trialgate" in path.name or path.name.endswith(".db")]
    assert not ours


@pytest.mark.parametrize("module", LIGHT)
def test_commands_start_without_the_heavy_libraries(module: str, tmp_path: Path) -> None:
    code = f"import importlib, json, sys; importlib.import_module({module!r}); print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(_run_python(code, tmp_path).splitlines()[-1]))
    assert not loaded & HEAVY


@pytest.mark.parametrize("module", ["serve_app.inference.engine", "ray_jobs.training"])
def test_trials_and_replicas_start_without_transformers(module: str, tmp_path: Path) -> None:
    """Which takes longer to import, and more memory, than torch and all the rest."""
    code = f"import importlib, json, sys; importlib.import_module({module!r}); print(json.dumps(sorted(sys.modules)))"
    assert not set(json.loads(_run_python(code, tmp_path).splitlines()[-1])) & {"transformers", "sklearn", "pandas"}
