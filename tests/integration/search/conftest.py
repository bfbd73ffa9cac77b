"""What tests of whole searches look into."""

from __future__ import annotations

from typing import Any

import optuna
import pytest

from ray_jobs import tuning


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[optuna.Study]:
    """The Optuna studies of the searches that are run."""
    found: list[optuna.Study] = []
    make = tuning.new_searcher

    def kept(*arguments: Any) -> Any:
        searcher = make(*arguments)
        found.append(searcher._ot_study)
        return searcher

    monkeypatch.setattr(tuning, "new_searcher", kept)
    return found
