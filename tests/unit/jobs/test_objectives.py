"""The Pareto front, and which of its points goes to the gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from configs.search import SearchConfig
from ray_jobs.objectives import choose, front, gate_first, model_cost, table
from ray_jobs.tracking import TrialRecord
from ray_jobs.training import LabelledTokens
from serve_app.inference.token_ids import TokenizedTexts


def search_of(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate({"objectives": ["f1 max", "parameters min"], **changes})


class FakeTrainer:
    """Counts the forward passes."""

    def __init__(self) -> None:
        self.texts: list[int] = []

    def logits(self, tokens: TokenizedTexts) -> None:
        self.texts.append(len(tokens))


def test_workers_report_size_always_and_latency_if_asked() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad = False
    texts = LabelledTokens(TokenizedTexts.from_lists([[1, 2]] * 20), np.zeros(20, dtype=np.int64))
    trainer: Any = FakeTrainer()
    assert model_cost(model, trainer, texts, ["f1 max", "parameters min"]) == {"parameters": 6}
    assert trainer.texts == []
    cost = model_cost(model, trainer, texts, ["f1 max", "latency min"])
    assert cost["latency_ms"] > 0
    assert set(trainer.texts) == {8}


def trial(name: str, f1: float | None, parameters: float, outcome: Any = "finished", **metrics: float) -> TrialRecord:
    return TrialRecord(name, {}, 0.0, outcome, f1, metrics={"parameters": parameters, **metrics})


LARGE = trial("large", 0.920, 1000)
MIDDLE = trial("middle", 0.917, 400)
SMALL = trial("small", 0.880, 100)
BEATEN = trial("beaten", 0.879, 100)  # as small as SMALL, and worse
TWIN = trial("twin", 0.920, 1000)
FAILED = trial("failed", 0.99, 1, "failed")
SILENT = TrialRecord("silent", {}, 0.0, "finished", 0.99)  # never said how large it is
TRIALS = [LARGE, MIDDLE, SMALL, BEATEN, FAILED, SILENT]


def names(trials: list[TrialRecord]) -> list[str]:
    return [record.trial_id for record in trials]


def test_front_is_what_nothing_beats() -> None:
    assert names(front(TRIALS, search_of())) == ["large", "middle", "small"]
    assert names(front([*TRIALS, TWIN], search_of())) == ["large", "middle", "small", "twin"], "equals stay"


@pytest.mark.parametrize(
    ("drop", "expected", "reason"),
    [
        (0.0, "large", "the highest F1, 0.9200"),
        (0.005, "middle", "parameters 400 is the least within 0.005 of the highest F1: 0.9170 of 0.9200"),
        (0.04, "small", "0.8800 of 0.9200"),
    ],
)
def test_the_gate_gets_the_cheapest_within_the_drop(drop: float, expected: str, reason: str) -> None:
    chosen = choose(TRIALS, search_of(max_f1_drop=drop))
    assert chosen is not None
    assert chosen[0].trial_id == expected
    assert reason in chosen[1]
    assert names(gate_first(TRIALS, search_of(max_f1_drop=drop)))[0] == expected
    assert len(gate_first(TRIALS, search_of(max_f1_drop=drop))) == len(TRIALS)


def test_latency_as_third_objective_breaks_ties() -> None:
    slow, fast = trial("slow", 0.9, 10, latency_ms=9.0), trial("fast", 0.9, 10, latency_ms=3.0)
    search = search_of(objectives=["f1 max", "parameters min", "latency min"], max_f1_drop=0.01)
    assert names(front([slow, fast], search)) == ["fast"]
    equal_but_slower = trial("accurate", 0.905, 10, latency_ms=9.0)
    chosen = choose([equal_but_slower, fast], search)
    assert chosen is not None
    assert chosen[0] is fast


def test_one_objective_changes_nothing() -> None:
    assert choose(TRIALS, SearchConfig()) is None
    assert gate_first(TRIALS, SearchConfig()) == TRIALS
    assert table(TRIALS, SearchConfig()) is None


def test_nothing_to_choose_from() -> None:
    assert gate_first([FAILED, SILENT], search_of()) == [FAILED, SILENT]


def test_table_marks_the_choice_and_says_why() -> None:
    text = table(TRIALS, search_of(max_f1_drop=0.005))
    assert text is not None
    lines = text.splitlines()
    assert lines[0] == "Pareto front (f1 max, parameters min): 3 of 6 trials"
    assert [line.split() for line in lines[2:5]] == [
        ["large", "0.9200", "1,000"],
        ["->", "middle", "0.9170", "400"],
        ["small", "0.8800", "100"],
    ]
    assert lines[5].startswith("to the gate: trial middle: parameters 400 is the least within 0.005")
