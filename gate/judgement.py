"""The judgement: both models scored on the candidate's frozen test split, the rule, and the checks beside it.

Nothing is changed here but that scores are stored.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from configs.schema import Settings
from gate import registry
from gate.candidates import (
    Candidate,
    active_run_id,
    fetch_model,
    fetch_test_split,
    fetch_version,
    same_weights,
)
from gate.decision import NOT_ROLLED_BACK, RULE, Check, Decision, conclude, decide
from gate.scoring import Score, ScoreStore, ScoringError, TestSplit, read_test_split, score_model
from serve_app import mlflow_client as names
from serve_app.inference.metrics import F1Definition
from serve_app.mlflow_client import PRODUCTION

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

WAYS_OUT = "go back (python -m gate rollback), use another tracking.model_name, or override (--force --reason TEXT)"


@dataclass
class Judgement:
    """A decision that is not carried out yet. ``version``: the registered one with the candidate's weights, if any."""

    decision: Decision
    folder: Path | None
    version: ModelVersion | None
    score: Score | None


def judge(
    client: MlflowClient,
    candidate: Candidate,
    settings: Settings,
    folder: Path,
    action: Literal["check", "promote"],
    *,
    force: bool,
) -> Judgement:
    """Scores both sides and applies rule and checks."""
    name, minimum = settings.tracking.model_name, settings.gate.minimum_f1
    production = registry.aliased(client, name, PRODUCTION)
    checks: list[Check] = []
    model_folder, split, score = _score_candidate(client, candidate, settings, folder, checks)
    baseline = None
    if production is not None and split is not None and score is not None:
        baseline = _score_production(client, production, settings, split, score, folder, checks)
    verdict = decide(score.f1 if score else None, baseline.f1 if baseline else None, production is not None, minimum)
    if all(check.passed for check in checks):
        checks.append(Check(name=RULE, passed=verdict.passed, message=verdict.reason))
    else:  # what keeps the rule from being applied is the message, not that an F1 is missing
        checks.append(Check(name=RULE, passed=False, message=f"the rule cannot be applied: {verdict.reason}"))
    version = candidate.version
    if version is None and score is not None:
        unusable = str(production.version) if production is not None and baseline is None else None
        version = _reusable(client, name, score.key.weights_digest, unusable, folder)
    checks.append(_not_rolled_back(version))
    outcome, reason = conclude(checks, force=force)
    passed_as: Literal["would_promote", "promoted"] = "would_promote" if action == "check" else "promoted"
    current = str(production.version) if production else None
    decision = Decision(
        decision="forced" if outcome == "forced" else "blocked" if outcome == "blocked" else passed_as,
        reason=reason,
        action=action,
        model_name=name,
        run_id=candidate.run_id,
        parent_run_id=candidate.parent_run_id,
        f1=score.f1 if score else None,
        baseline_f1=baseline.f1 if baseline else None,
        minimum_f1=minimum,
        model_version=str(version.version) if version else None,
        baseline_version=current,
        production_version=current,
        test_digest=split.digest if split else candidate.test_digest,
        checks=checks,
        candidate_score=score.model_dump(mode="json") if score else None,
        baseline_score=baseline.model_dump(mode="json") if baseline else None,
    )
    return Judgement(decision, model_folder, version, score)


def score_candidate(
    client: MlflowClient, candidate: Candidate, precision: str, folder: Path
) -> tuple[Path, TestSplit, Score]:
    """The candidate's saved model (copied below ``folder``), its frozen test split, and its score, which is stored.

    Raises ScoringError for whatever keeps it from having a score.
    """
    store = ScoreStore(client, active_run_id(client, candidate.run_id))
    model = fetch_model(client, candidate, folder / "candidate")
    split = read_test_split(fetch_test_split(client, candidate, folder), candidate.test_digest)
    definition = F1Definition.from_key(candidate.f1_definition) if candidate.f1_definition else None
    score, probabilities = score_model(
        model, split, precision=precision, find=store.find, definition=definition, what=candidate.what
    )
    if probabilities is not None:
        store.show(score, split.labels, probabilities)
        store.keep(score)
    return model, split, score


def _score_candidate(
    client: MlflowClient, candidate: Candidate, settings: Settings, folder: Path, checks: list[Check]
) -> tuple[Path | None, TestSplit | None, Score | None]:
    try:
        model, split, score = score_candidate(client, candidate, settings.serving.precision, folder)
    except ScoringError as error:
        checks.append(Check(name="candidate_score", passed=False, message=str(error), overridable=False))
        return None, None, None
    checks.append(Check(name="candidate_score", passed=True, message=f"F1 {score.f1:.4f} on {score.texts} texts"))
    return model, split, score


def _score_production(
    client: MlflowClient,
    production: ModelVersion,
    settings: Settings,
    split: TestSplit,
    candidate: Score,
    folder: Path,
    checks: list[Check],
) -> Score | None:
    """Production's score on the candidate's split, under the candidate's definition of F1."""
    store = ScoreStore(client, active_run_id(client, production.run_id))
    try:
        model = fetch_version(client, production, folder / "production")
        score, probabilities = score_model(
            model,
            split,
            precision=settings.serving.precision,
            find=store.find,
            definition=F1Definition.from_key(candidate.key.f1_definition),
            what=f"production (version {production.version})",
        )
    except ScoringError as error:
        message = f"production cannot be scored on the candidate's test split: {error}. Ways out: {WAYS_OUT}"
        checks.append(Check(name="production_score", passed=False, message=message))
        return None
    if probabilities is not None:
        store.keep(score)
    checks.append(Check(name="production_score", passed=True, message=f"F1 {score.f1:.4f} on {score.texts} texts"))
    return score


def _reusable(client: MlflowClient, name: str, digest: str, unusable: str | None, folder: Path) -> ModelVersion | None:
    """A registered version with these weights, whose artifact is really there."""
    version = registry.with_weights(client, name, digest)
    if version is None or str(version.version) == unusable:
        return None
    if not same_weights(client, version, digest, folder / "registered"):
        logger.warning("version %s has the same weights, but its artifact cannot be read", version.version)
        return None
    return version


def _not_rolled_back(version: ModelVersion | None) -> Check:
    if version is None:
        return Check(name=NOT_ROLLED_BACK, passed=True, message="these weights are not registered yet")
    since = version.tags.get(names.ROLLED_BACK)
    if since is None:
        return Check(name=NOT_ROLLED_BACK, passed=True, message=f"version {version.version} was not rolled back")
    message = f"version {version.version} was rolled back ({since}): it needs --force --reason TEXT"
    return Check(name=NOT_ROLLED_BACK, passed=False, message=message)
