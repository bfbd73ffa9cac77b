"""A decision as a document: what was asked, what it rests on, what came of it, by whom and when."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from configs.exit_codes import ExitCode, UsageError
from configs.gate import GateConfig
from gate.policy import Evidence
from gate.rule import Check

Outcome = Literal["would_promote", "promoted", "forced", "blocked", "rolled_back", "would_prune", "pruned"]


class GateUsageError(UsageError):
    """A run, version, model or option that does not exist or cannot be meant; names it and the fix (exit 2)."""


class Decision(BaseModel):
    """A decision with all that led to it; the content of ``--json`` and of the artifact ``decision.json``."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    decision: Outcome
    reason: str
    action: Literal["check", "promote", "rollback", "prune"]
    model_name: str
    alias: Literal["production", "challenger"] = Field("production", description="The alias that is asked for.")
    run_id: str | None = Field(None, description="The candidate's trial run.")
    parent_run_id: str | None = None
    f1: float | None = None
    baseline_f1: float | None = Field(None, description="Production's F1 on the candidate's test split.")
    minimum_f1: float | None = None
    model_version: str | None = Field(None, description="The version that the decision is about, if registered.")
    baseline_version: str | None = Field(None, description="The version in production when it was decided.")
    production_version: str | None = Field(None, description="The version in production afterwards.")
    left_weights_digest: str | None = Field(None, description="Of the version that a rollback leaves.")
    changed: bool = Field(False, description="Whether the alias production moved.")
    versions: list[str] = Field(default_factory=list, description="The versions that a prune removes, oldest first.")
    test_digest: str | None = None
    config_digest: str | None = Field(None, description="SHA-256 of the search's settings, as they are stored.")
    policy: GateConfig | None = Field(None, description="The settings under gate that it was decided by.")
    evidence: Evidence | None = Field(None, description="Everything that rule and checks were computed from.")
    checks: list[Check] = Field(default_factory=list)
    force: bool = Field(False, description="Whether a failing verdict was to be overridden.")
    forced_reason: str | None = Field(None, description="The reason given on the command line.")
    decision_id: str | None = Field(None, description="The MLflow run that records this decision.")
    decided_at: str | None = Field(None, description="UTC, ISO 8601.")
    decided_by: str | None = None

    @property
    def passed(self) -> bool:
        """Whether what was asked for happened (or would)."""
        return self.decision != "blocked"

    @property
    def already(self) -> str:
        """What stands before the reason when the version had the alias before."""
        return f"version {self.model_version} is already {self.alias}; "

    @property
    def exit_code(self) -> ExitCode:
        """OK or BLOCKED."""
        return ExitCode.OK if self.passed else ExitCode.BLOCKED
