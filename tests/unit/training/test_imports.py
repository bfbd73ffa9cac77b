"""What training and scoring have to load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path

import numpy as np

from configs.model import TrainingConfig
from ray_jobs.training import LabelledTokens, Trainer
from ray_jobs.training_state import read_state, write_state
from serve_app.inference.engine import Engine
from serve_app.inference.families import new_distilbert
from serve_app.inference.metrics import F1Definition
from tests.tiny import tokens_of, write_tiny_model

folder = Path(sys.argv[1])
sizes = {"layers": 1, "width": 16, "heads": 2, "feed_forward_width": 32, "vocabulary_size": 60, "max_length": 16}
data = LabelledTokens(tokens_of(np.random.default_rng(0), [5] * 8, 60), np.array([0, 1] * 4))


def new_trainer() -> Trainer:
    model = new_distilbert(labels=("no", "yes"), **sizes)
    config = TrainingConfig(epochs=1, precision="fp32")
    return Trainer(model, data, data, config, label_names=("no", "yes"), f1=F1Definition("binary", "yes"))


trainer = new_trainer()
trainer.run()
write_state(folder / "state", trainer)
read_state(folder / "state", new_trainer())
Engine.load(write_tiny_model(folder / "model")).predict(["good"])
sys.exit(", ".join({"torch._dynamo", "sympy", "transformers"} & sys.modules.keys()) or None)
"""


def test_a_trial_and_a_replica_do_without_the_compiler_and_transformers(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
