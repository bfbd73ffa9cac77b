"""The settings under ``gate``: what a candidate must show before it is promoted."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from configs.section import Section

SHIPPED_SUITE = r"[\w-]+"  # such a name means a suite that ships with the gate, anything else is a path or URL


class GateConfig(Section):
    """The promotion gate."""

    minimum_f1: float = Field(
        0.85, ge=0.0, le=1.0, description="F1 that a candidate needs while there is no production model yet."
    )
    require_significant: bool = Field(
        False,
        description="Block a candidate whose F1 is not significantly above production's: the 95 % interval of the "
        "difference must lie above 0.",
    )
    max_slice_regression: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Most that the F1 of any slice of 50 texts or more may fall below production's; default: no limit.",
    )
    min_class_f1: float | None = Field(
        None, ge=0.0, le=1.0, description="F1 that every single class needs; default: no limit."
    )
    max_ece: float | None = Field(
        None, ge=0.0, le=1.0, description="Largest expected calibration error of the candidate; default: no limit."
    )
    max_latency_ratio: float | None = Field(
        None,
        gt=0.0,
        le=1000.0,
        description="Most times production's median latency for one text that the candidate may take, both measured "
        "just before the decision; default: no limit.",
    )
    min_agreement: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        description="Smallest share of test texts that candidate and production must predict alike; default: no limit.",
    )
    behaviour_suites: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=lambda: ["sentiment"],
        description="Behavioural tests of the model: names of shipped suites, paths or URLs; [] switches them off.",
    )
    min_behaviour: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]] = Field(
        default_factory=dict,
        description="Least pass rate (0 to 1) of the behavioural tests by capability; less blocks. Others inform.",
    )

    @model_validator(mode="after")
    def _suites_for_the_minima(self) -> GateConfig:
        if self.min_behaviour and not self.behaviour_suites:
            raise ValueError(
                f"gate.min_behaviour asks for {', '.join(self.min_behaviour)}, and gate.behaviour_suites is empty: "
                "name a suite, or leave gate.min_behaviour out"
            )
        return self
