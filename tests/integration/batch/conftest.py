"""A registry whose production model says "positive" where "good" stands, and the command on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RayCluster
from tests.integration.batch.world import Batch
from tests.integration.serving.world import Registry


@pytest.fixture
def registry(tracking_uri: str, tmp_path: Path) -> Registry:
    registry = Registry(tracking_uri, tmp_path)
    registry.promote(registry.register())
    return registry


@pytest.fixture
def batch(ray_cluster: RayCluster, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Batch:
    return Batch(registry, tmp_path, capsys)
