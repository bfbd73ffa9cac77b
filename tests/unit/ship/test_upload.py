"""What ``ray job submit --working-dir .`` uploads from a checkout that was worked in, and configs/runtime_env.yaml."""

from __future__ import annotations

import shutil
import zipfile
from typing import Any

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed
from ray.runtime_env import RuntimeEnv

from tests.unit.ship.tools import REPOSITORY, text

MOST_BYTES = 2_000_000
FAT = 5_000_000
# what installing, running and testing leave in a checkout, and what people put there
LEFT = [
    ".venv/lib/python3.11/site-packages/torch/libtorch.so",
    ".git/objects/pack/pack-1.pack",
    ".trialgate/searches/one/trials/two/model.safetensors",
    ".trialgate/mlflow.db",
    "mlruns/1/abc/artifacts/model/data.bin",
    "mlartifacts/1/abc/model.bin",
    "mlflow.db",
    "outputs/scored/part-00000.bin",
    ".mypy_cache/3.11/cache.db",
    ".hypothesis/examples/example",
    "data/reviews.txt",
    "reviews.parquet",
    "reviews/train.csv",
    "my-model/model.safetensors",
]
RUNTIME_ENV: dict[str, Any] = yaml.safe_load(text("configs/runtime_env.yaml"))


@pytest.fixture(scope="module")
def uploaded(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """The archive that Ray makes of such a checkout."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "gate", "ray_jobs", "serve_app", "tests", "docs", ".github", ".ci"):
        shutil.copytree(REPOSITORY / name, checkout / name)
    for path in REPOSITORY.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, checkout / path.name)
    for name in LEFT:
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(FAT))
    target = tmp_path_factory.mktemp("uploaded") / "package.zip"

    def upload(folder: str, excludes: list[str], is_file: bool = False) -> None:
        create_package(folder, target, include_gitignore=True, excludes=excludes)

    upload_working_dir_if_needed(
        {**RUNTIME_ENV, "working_dir": str(checkout)}, include_gitignore=True, upload_fn=upload
    )
    assert target.stat().st_size < MOST_BYTES
    return zipfile.Path(target)


def test_everything_that_a_job_needs_is_there(uploaded: zipfile.Path) -> None:
    there = set(uploaded.root.namelist())
    for package in ("configs", "gate", "ray_jobs", "serve_app"):
        for path in (REPOSITORY / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(REPOSITORY)) in there


def test_nothing_else_is(uploaded: zipfile.Path) -> None:
    folders = {path.name for path in uploaded.iterdir() if path.is_dir()}
    assert folders == {"configs", "gate", "ray_jobs", "serve_app"}
    assert not set(LEFT) & set(uploaded.root.namelist())


def test_no_folder_is_walked_through_to_leave_out_all_that_is_in_it() -> None:
    """Ray asks for a folder by its name, which a pattern with a slash at its end does not match."""
    assert not [line for line in text(".rayignore").splitlines() if line.endswith("/")]
    assert {".trialgate", "mlruns", "mlartifacts"} <= set(text(".rayignore").splitlines())


def test_the_runtime_env_is_one_and_holds_no_secret() -> None:
    assert RuntimeEnv(**RUNTIME_ENV)
    assert all(isinstance(value, str) for value in RUNTIME_ENV["env_vars"].values())
    assert not [name for name in RUNTIME_ENV["env_vars"] if any(word in name for word in ("TOKEN", "KEY", "PASSWORD"))]
