"""Files to score, and the command with everything that a test does not care about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_jobs import batch_score
from tests.integration.serving.world import Registry

TEXTS = [f"the {what} was {how}" for what in ("movie", "plot", "cast") for how in ("good", "bad", "fine", "awful")]


class Batch:
    """The command with everything that a test does not care about."""

    def __init__(self, registry: Registry, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.output = folder / "scored"
        self._registry, self._folder, self._capsys = registry, folder, capsys
        self.told = ""

    def __call__(self, *arguments: str, **settings: Any) -> tuple[int, dict[str, Any]]:
        code = batch_score.main([*self.arguments(**settings), "--json", *arguments])
        out, self.told = self._capsys.readouterr()
        return code, json.loads(out)

    def arguments(self, **settings: Any) -> list[str]:
        sets = {"tracking.uri": self._registry.uri, "home": self._folder / "home", "serving.precision": "fp32"}
        sets |= {
            f"batch_score.{name}": value for name, value in {"rows_per_part": 10, "workers": 1, **settings}.items()
        }
        return [*(f"--set={name}={value}" for name, value in sets.items()), "--output", str(self.output)]

    def parts(self) -> list[Path]:
        return sorted(self.output.glob("part-*"))

    def rejected(self) -> list[dict[str, Any]]:
        return [json.loads(line) for path in sorted((self.output / "_rejected").iterdir()) for line in path.open()]
