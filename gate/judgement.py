"""The judgement: both models scored on the candidate's frozen test split, the rule, and the checks beside it.

Nothing is changed here but that scores are stored.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from configs.schema import Settings
from gate import audit, registry
from gate.behaviour import BehaviourError, BehaviourReport, behaviour_of
from gate.candidates import (
    Candidate,
    active_run_id,
    fetch_model,
    fetch_test_split,
    fetch_version,
    same_weights,
)
from gate.comparison import Comparison, compare
from gate.decision import Decision
from gate.policy import Evidence, judge_evidence
from gate.rule import NOT_ROLLED_BACK, Check
from gate.score_store import ScoreStore
from gate.scoring import Scored, ScoringError, TestSplit, read_test_split, score_model
from gate.slices import slices_of
from gate.speed import measure_speed
from gate.suite import load_suites
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
    """A decision that is not carried out yet. ``version``: the registered one with the candidate's weights, if any;
    ``folder``: the candidate's saved model; None when it has no score."""

    decision: Decision
    folder: Path | None
    version: ModelVersion | None


@dataclass(frozen=True)
class ScoredFolder:
    """A scored model and the saved-model folder that it was read from."""

    scored: Scored
    folder: Path


def judge(
    client: MlflowClient,
    candidate: Candidate,
    settings: Settings,
    folder: Path,
    action: Literal["check", "promote"],
    *,
    force: bool,
) -> Judgement:
    """Gathers the evidence about both sides and applies rule and policy to it."""
    name = settings.tracking.model_name
    load_suites(settings.gate.behaviour_suites)  # one that cannot be used is told before minutes of scoring
    production = registry.aliased(client, name, PRODUCTION)
    facts: list[Check] = [] if production is not None else _production_lost(client, name)
    new, split = _score_candidate(client, candidate, settings, folder, facts)
    old = None
    if production is not None and split is not None and new is not None:
        old = _score_production(client, production, settings, split, new.scored, folder, facts)
    version = candidate.version
    if version is None and new is not None:
        unusable = str(production.version) if production is not None and old is None else None
        version = _reusable(client, name, new.scored.score.key.weights_digest, unusable, folder)
    facts.append(_not_rolled_back(version))
    behaviour = _behaviour(new, settings.gate.behaviour_suites, facts) if new else None
    evidence = _evidence(new, old, split, behaviour, production_exists=production is not None, facts=facts)
    conclusion = judge_evidence(evidence, settings.gate, force=force)
    passed_as: Literal["would_promote", "promoted"] = "would_promote" if action == "check" else "promoted"
    current = str(production.version) if production else None
    decision = Decision(
        decision=passed_as if conclusion.outcome == "pass" else conclusion.outcome,
        reason=conclusion.reason,
        action=action,
        model_name=name,
        run_id=candidate.run_id,
        parent_run_id=candidate.parent_run_id,
        f1=evidence.candidate.f1 if evidence.candidate else None,
        baseline_f1=evidence.production.f1 if evidence.production else None,
        minimum_f1=settings.gate.minimum_f1,
        model_version=str(version.version) if version else None,
        baseline_version=current,
        production_version=current,
        test_digest=split.digest if split else candidate.test_digest,
        config_digest=candidate.config_digest,
        policy=settings.gate,
        evidence=evidence,
        checks=conclusion.checks,
        force=force,
    )
    return Judgement(decision, new.folder if new else None, version)


def score_candidate(
    client: MlflowClient, candidate: Candidate, precision: str, folder: Path
) -> tuple[ScoredFolder, TestSplit]:
    """The candidate's saved model (copied below ``folder``) with its score, which is stored, on its frozen test split.

    Raises ScoringError for whatever keeps it from having a score.
    """
    store = ScoreStore(client, active_run_id(client, candidate.run_id))
    model = fetch_model(client, candidate, folder / "candidate")
    split = read_test_split(fetch_test_split(client, candidate, folder), candidate.test_digest)
    definition = F1Definition.from_key(candidate.f1_definition) if candidate.f1_definition else None
    scored = score_model(model, split, precision=precision, find=store.find, definition=definition, what=candidate.what)
    if scored.new:
        store.show(scored.score, split.labels, scored.probabilities)
        store.keep(scored.score, split, scored.probabilities)
    return ScoredFolder(scored, model), split


def _score_candidate(
    client: MlflowClient, candidate: Candidate, settings: Settings, folder: Path, facts: list[Check]
) -> tuple[ScoredFolder | None, TestSplit | None]:
    try:
        found, split = score_candidate(client, candidate, settings.serving.precision, folder)
    except ScoringError as error:
        facts.append(Check(name="candidate_score", passed=False, message=str(error), overridable=False))
        return None, None
    facts.append(_scored_fact("candidate_score", found.scored))
    return found, split


def _score_production(
    client: MlflowClient,
    production: ModelVersion,
    settings: Settings,
    split: TestSplit,
    candidate: Scored,
    folder: Path,
    facts: list[Check],
) -> ScoredFolder | None:
    """Production with its score on the candidate's split, under the candidate's definition of F1."""
    store = ScoreStore(client, active_run_id(client, production.run_id))
    try:
        model = fetch_version(client, production, folder / "production")
        scored = score_model(
            model,
            split,
            precision=settings.serving.precision,
            find=store.find,
            definition=F1Definition.from_key(candidate.score.key.f1_definition),
            what=f"production (version {production.version})",
        )
    except ScoringError as error:
        message = f"production cannot be scored on the candidate's test split: {error}. Ways out: {WAYS_OUT}"
        facts.append(Check(name="production_score", passed=False, message=message))
        return None
    if scored.new:
        store.keep(scored.score, split, scored.probabilities)
    facts.append(_scored_fact("production_score", scored))
    return ScoredFolder(scored, model)


def _production_lost(client: MlflowClient, name: str) -> list[Check]:
    """A failed check if there was a production version and somebody deleted it, or its alias, in MLflow: that is not
    the same as no production yet. A model that was deleted as a whole starts anew."""
    last = audit.last_holder(client, name, PRODUCTION)
    if last is None or registry.find_model(client, name) is None:
        return []
    what = "no longer has the alias" if registry.get_version(client, name, last) else "was deleted"
    message = f"production of {name} was version {last}, which {what} outside the gate. Ways out: {WAYS_OUT}"
    return [Check(name="production_version", passed=False, message=message)]


def _scored_fact(name: str, scored: Scored) -> Check:
    score = scored.score
    message = f"F1 {score.intervals['f1']} on {score.texts} texts"
    return Check(name=name, passed=True, message=message, value=score.f1)


def _behaviour(new: ScoredFolder, suites: list[str], facts: list[Check]) -> BehaviourReport | None:
    try:
        return behaviour_of(new.scored.engine, suites)
    except BehaviourError as error:
        facts.append(Check(name="behaviour", passed=False, message=str(error), overridable=False))
        return None


def _evidence(
    new: ScoredFolder | None,
    old: ScoredFolder | None,
    split: TestSplit | None,
    behaviour: BehaviourReport | None,
    *,
    production_exists: bool,
    facts: list[Check],
) -> Evidence:
    if new is None or split is None:
        return Evidence(production_exists=production_exists, facts=facts)
    both = [new] if old is None else [new, old]
    speeds = measure_speed([(each.scored.engine, each.folder) for each in both], split.texts)
    return Evidence(
        production_exists=production_exists,
        candidate=new.scored.score,
        production=old.scored.score if old else None,
        comparison=_compared(new.scored, old.scored, split) if old else None,
        candidate_speed=speeds[0],
        production_speed=speeds[1] if old else None,
        behaviour=behaviour,
        facts=facts,
    )


def _compared(candidate: Scored, production: Scored, split: TestSplit) -> Comparison:
    return compare(
        split.ids,
        split.labels,
        production.probabilities,
        candidate.probabilities,
        label_names=split.label_names,
        definition=candidate.engine.info.f1,
        slices=slices_of(split.texts, split.slices),
    )


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
