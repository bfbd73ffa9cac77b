"""The schema: every setting is described and bounded, and settings that contradict each other are refused."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, get_args

import annotated_types
import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from configs.schema import Settings
from configs.search import SearchConfig
from configs.section import Section

# Ends of a dimension: their bounds are those of the setting that is searched, and checked against it.
UNBOUNDED = {"Uniform.low", "Uniform.high", "Int.low", "Int.high"}


def sections() -> list[type[BaseModel]]:
    return Section.__subclasses__()


def fields() -> Iterator[tuple[str, FieldInfo]]:
    for section in sections():
        for name, field in section.model_fields.items():
            yield f"{section.__name__}.{name}", field


def _is_number(annotation: Any) -> bool:
    parts = get_args(annotation) or (annotation,)
    return any(part in (int, float) for part in parts) and typing.get_origin(annotation) is not list


def _refusal(values: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as error:
        Settings.model_validate(values)
    return "\n".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.value.errors())


@pytest.mark.parametrize(("name", "field"), [pytest.param(name, field, id=name) for name, field in fields()])
def test_every_field_is_described(name: str, field: FieldInfo) -> None:
    is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    is_discriminator = name.endswith(".type")
    assert field.description or is_section or is_discriminator, f"{name} has no description"


@pytest.mark.parametrize(
    ("name", "field"), [pytest.param(name, field, id=name) for name, field in fields() if _is_number(field.annotation)]
)
def test_every_number_has_a_lower_bound(name: str, field: FieldInfo) -> None:
    bounded = any(isinstance(limit, annotated_types.Ge | annotated_types.Gt) for limit in field.metadata)
    assert bounded or name in UNBOUNDED


def test_the_defaults_are_valid() -> None:
    assert Settings.model_validate(Settings().model_dump()) == Settings()


def test_assignment_is_checked_too() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        settings.training.epochs = 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("section", ["training", "gate"])
def test_numbers_that_are_none_are_refused(section: str, value: float) -> None:
    field = {"training": "learning_rate", "gate": "minimum_f1"}[section]
    assert field in _refusal({section: {field: value}})


def _space(key: str, **dimension: Any) -> dict[str, Any]:
    return {"search": {"space": {key: dimension}}}


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        pytest.param({"data": {"source": "hub"}}, ["data.hub_id"], id="hub without an id"),
        pytest.param({"data": {"source": "aclimdb"}}, ["data.path"], id="aclimdb without a folder"),
        pytest.param({"data": {"source": "files"}}, ["data.train"], id="files without files"),
        pytest.param({"data": {"hub_id": "a/b"}}, ["data.hub_id", "data.source=hub"], id="an id of another source"),
        pytest.param({"data": {"test": ["t.csv"]}}, ["data.test", "files"], id="test files of another source"),
        pytest.param(
            {"data": {"source": "aclimdb", "path": "x", "slice_columns": ["a"]}},
            ["slice_columns", "aclimdb", "remove"],
            id="slices without columns",
        ),
        pytest.param({"data": {"slice_columns": ["stars"]}}, ["slice_columns", "topic"], id="slices of built-in data"),
        pytest.param({"data": {"slice_columns": ["topic"] * 2}}, ["slice_columns", "twice"], id="a slice twice"),
        pytest.param(
            {"data": {"source": "hub", "hub_id": "a/b", "slice_columns": ["label"]}},
            ["slice_columns", "'label'"],
            id="the label for a slice",
        ),
        pytest.param({"data": {"label_names": ["a", "a"]}}, ["label_names", "twice"], id="a class twice"),
        pytest.param({"data": {"label_names": ["a"]}}, ["label_names", "2 items"], id="one class"),
        pytest.param(
            {"data": {"label_names": ["a", "b"], "positive_label": "c"}}, ["positive_label", "'c'"], id="no such class"
        ),
        pytest.param({"model": {}}, ["model.checkpoint", "model.architecture", "neither"], id="no model"),
        pytest.param({"model": {"checkpoint": "x", "architecture": {}}}, ["both"], id="two models"),
        pytest.param(
            {"model": {"architecture": {"width": 100, "heads": 3}}}, ["heads", "divide"], id="heads and width"
        ),
        pytest.param(
            {"model": {"family": "cnet", "avgnet": {}}}, ["model.avgnet", "family=avgnet"], id="another family's sizes"
        ),
        pytest.param(
            {"model": {"family": "rnn", "checkpoint": "x"}},
            ["model.checkpoint", "family=distilbert"],
            id="a checkpoint",
        ),
        pytest.param({"model": {"cnet": {}, "checkpoint": "x"}}, ["model.cnet", "family=cnet"], id="sizes, no family"),
        pytest.param(
            {"model": {"family": "rnn", "attention_dropout": 0.3}}, ["attention_dropout", "rnn"], id="no attention here"
        ),
        pytest.param(
            {"model": {"family": "cnet", "cnet": {"narrowest_window": 6}}}, ["narrowest_window 6", "5"], id="windows"
        ),
        pytest.param(
            {"model": {"family": "cnet"}, **_space("model.avgnet.width", type="int", low=8, high=16)},
            ["model.avgnet.width", "not a setting"],
            id="a size of another family",
        ),
        pytest.param(
            {"model": {"family": "cnet"}, **_space("model.family", type="choice", values=["cnet", "rnn"])},
            ["model.family", "one search for each"],
            id="families in one search",
        ),
        pytest.param(
            {"training": {"max_batch_tokens": 100}},
            ["training.max_batch_tokens", "model.max_length"],
            id="a text larger than a training batch",
        ),
        pytest.param(
            {"serving": {"max_batch_tokens": 100}},
            ["serving.max_batch_tokens", "model.max_length"],
            id="a text larger than a serving batch",
        ),
        pytest.param(
            {"training": {"warmup_steps": 10_000}}, ["warmup_steps", "longer than training"], id="endless warm-up"
        ),
        pytest.param({"training": {"warmup_ratio": 1.0}}, ["warmup_ratio", "decay"], id="warm-up leaves no decay"),
        pytest.param(
            {"training": {"batch_size": 2}, "search": {"workers_per_trial": 4}},
            ["batch_size", "workers"],
            id="more workers than texts in a step",
        ),
        pytest.param(
            {"training": {"epochs": 2}, "search": {"grace_epochs": 3}}, ["grace_epochs", "epochs"], id="grace too long"
        ),
        pytest.param(
            {"search": {"sampler": "random", "startup_trials": 3}},
            ["search.startup_trials is for sampler tpe or cmaes or gp", "'random'", "remove it", "search.sampler=tpe"],
            id="an option of another sampler",
        ),
        pytest.param({"search": {"population": 8}}, ["search.population", "cmaes"], id="an option of cmaes"),
        pytest.param(
            {"search": {"scheduler": "none", "grace_epochs": 1}},
            ["search.grace_epochs is for scheduler asha or median", "'none'"],
            id="an option of another scheduler",
        ),
        pytest.param(
            {
                "search": {
                    "sampler": "cmaes",
                    "space": {"training.batch_size": {"type": "choice", "values": [16, 32]}},
                }
            },
            ["search.sampler cmaes", "training.batch_size", "tpe or gp"],
            id="a choice for cmaes",
        ),
        pytest.param(
            {
                "search": {
                    "sampler": "cmaes",
                    "space": {"training.learning_rate": {"type": "loguniform", "low": 1e-5, "high": 1e-3}},
                }
            },
            ["search.sampler cmaes", "two or more", "1 of them"],
            id="one dimension for cmaes",
        ),
        pytest.param(
            {"search": {"objectives": ["parameters min", "f1 max"]}},
            ["search.objectives", "'f1 max' first"],
            id="F1 not the first objective",
        ),
        pytest.param(
            {"search": {"objectives": ["f1 max", "f1 max"]}}, ["search.objectives", "twice"], id="an objective twice"
        ),
        pytest.param(
            {"search": {"objectives": ["f1 max", "parameters max"]}},
            ["search.objectives", "parameters min"],
            id="as many parameters as can be",
        ),
        pytest.param(
            {"search": {"max_f1_drop": 0.01}}, ["search.max_f1_drop", "one objective"], id="a drop for nothing"
        ),
        pytest.param(
            {"search": {"sampler": "cmaes", "objectives": ["f1 max", "latency min"]}},
            ["search.sampler cmaes", "one objective"],
            id="cmaes with two objectives",
        ),
        pytest.param(
            {"search": {"warm_start": {"experiment": "a", "parent_run": "b"}}},
            ["search.warm_start.experiment", "both"],
            id="two warm starts",
        ),
        pytest.param({"search": {"warm_start": {}}}, ["search.warm_start", "neither"], id="a warm start from nothing"),
        pytest.param(
            {"search": {"warm_start": {"experiment": "a"}, "sampler": "random"}},
            ["search.warm_start", "'random'"],
            id="a warm start that nobody reads",
        ),
        pytest.param({"search": {"gpus_per_trial": 1.5}}, ["gpus_per_trial", "whole"], id="one and a half GPUs"),
        pytest.param(
            {"search": {"gpus_per_trial": 3, "workers_per_trial": 2}},
            ["gpus_per_trial", "evenly"],
            id="3 GPUs, 2 workers",
        ),
        pytest.param(
            _space("training.epochs", type="int", low=5, high=2),
            ["search.space.training.epochs", "above"],
            id="low > high",
        ),
        pytest.param(
            _space("training.learning_rate", type="uniform", low=0.1, high=7.0),
            ["search.space.training.learning_rate", "7.0"],
            id="space beyond the setting's bounds",
        ),
        pytest.param(
            _space("training.schedule", type="choice", values=["linear", "square"]),
            ["search.space.training.schedule", "square"],
            id="a choice that is none",
        ),
        pytest.param(_space("training.speed", type="int", low=1, high=2), ["training.speed"], id="no such setting"),
        pytest.param(_space("gate.minimum_f1", type="uniform", low=0, high=1), ["training.*"], id="not searchable"),
        pytest.param(_space("training.epochs", type="loguniform", low=0, high=1), ["low"], id="log of zero"),
        pytest.param(_space("training.epochs", type="choice", values=[]), ["values"], id="no choice"),
        pytest.param(
            {"serving": {"max_client_batch_size": 64, "max_concurrent_texts": 32}},
            ["max_client_batch_size", "max_concurrent_texts"],
            id="a batch that is never admitted",
        ),
        pytest.param(
            {"serving": {"min_replicas": 3, "max_replicas": 2}}, ["min_replicas", "max_replicas"], id="min over max"
        ),
        pytest.param(
            {"gate": {"behaviour_suites": [], "min_behaviour": {"negation": 0.9}}},
            ["gate.behaviour_suites", "negation"],
            id="least pass rates of no suite",
        ),
        pytest.param({"gate": {"min_behaviour": {"case": 90}}}, ["gate.min_behaviour.case"], id="a rate over 1"),
        pytest.param({"tracking": {"model_name": "a/b"}}, ["tracking.model_name"], id="a slash in the model's name"),
        pytest.param({"search": {"name": "../x"}}, ["search.name"], id="a path as the search's name"),
        pytest.param({"search": {"time_budget": "soon"}}, ["search.time_budget", "'soon'", "1h30m"], id="no time"),
        pytest.param({"search": {"time_budget": "30m1h"}}, ["search.time_budget"], id="units in another order"),
        pytest.param({"search": {"time_budget": ""}}, ["search.time_budget"], id="an empty time"),
        pytest.param({"search": {"time_budget": "0h"}}, ["search.time_budget"], id="no time at all"),
    ],
)
def test_nonsense_is_refused(values: dict[str, Any], parts: list[str]) -> None:
    message = _refusal(values)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"training": {"warmup_ratio": 1.0, "schedule": "constant"}}, id="all warm-up, then nothing"),
        pytest.param({"search": {"gpus_per_trial": 0.25}}, id="a quarter GPU"),
        pytest.param({"search": {"gpus_per_trial": 4, "workers_per_trial": 2}}, id="two GPUs for each of two workers"),
        pytest.param(_space("training.epochs", type="int", low=3, high=3), id="a space of one point"),
        pytest.param(_space("model.architecture.layers", type="choice", values=[1, 2]), id="a nested setting"),
        pytest.param(
            {"model": {"family": "cnet"}, **_space("model.cnet.filters", type="int", low=8, high=16)},
            id="a size of a small network",
        ),
        pytest.param({"training": {"warmup_steps": 375}}, id="warm-up as long as training"),
    ],
)
def test_edges_that_are_sense(values: dict[str, Any]) -> None:
    Settings.model_validate(values)


def test_workers_of_a_trial_default_to_its_gpus() -> None:
    found = [SearchConfig(gpus_per_trial=gpus).workers for gpus in (0, 0.5, 1, 4)]
    assert found == [1, 1, 1, 4]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (90, 90),
        (0.5, 0.5),
        ("45s", 45),
        ("90m", 5400),
        ("1h30m", 5400),
        ("1 h 30 m", 5400),
        ("1.5H", 5400),
        ("2d", 172800),
    ],
)
def test_times_can_be_written_with_units(written: object, seconds: float) -> None:
    settings = Settings.model_validate({"search": {"time_budget": written}})
    assert settings.search.time_budget == seconds
    assert Settings.model_validate_json(settings.model_dump_json()).search.time_budget == seconds


def test_a_trials_parameters_are_put_in_and_checked() -> None:
    settings = Settings.model_validate(_space("training.learning_rate", type="uniform", low=0.1, high=0.2))
    trial = settings.with_parameters({"training.learning_rate": 0.15, "model.architecture.layers": 3})
    assert trial.training.learning_rate == 0.15
    assert trial.model.architecture is not None
    assert trial.model.architecture.layers == 3
    assert settings.training.learning_rate == Settings().training.learning_rate, "the search's settings stay"
    with pytest.raises(ValidationError, match="heads"):
        settings.with_parameters({"model.architecture.width": 33})
