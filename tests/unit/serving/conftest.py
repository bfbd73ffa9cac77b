"""What the unit tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serve_app.engine_process import EngineProcess


@pytest.fixture(scope="session")
def engines() -> Iterator[EngineProcess]:
    """A real process of engines: it takes seconds to start, and is the same for every classifier."""
    process = EngineProcess()
    yield process
    process.close()
