"""What commands find when they are not the first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest


@pytest.fixture
def home(mlflow_template: Path, tmp_path: Path) -> Iterator[Path]:
    """A home with an empty MLflow database in it, which the first command takes seconds to make."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copyfile(mlflow_template, folder / "mlflow.db")
    yield folder
    mlflow.set_tracking_uri(None)
