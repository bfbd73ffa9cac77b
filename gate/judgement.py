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
from gate.decision import Decision, GateUsageError
from gate.evaluation import Speed
from gate.policy import Evidence, judge_evidence, scored_fact
from gate.rule import NOT_ROLLED_BACK, Check
from gate.score_store import ScoreStore
from gate.scoring import Scored, ScoringError, TestSplit, read_test_split, score_model
from gate.slices import slices_of
from gate.speed import ROUNDS, ROUNDS_TO_INFORM, measure_speed
from gate.suite import load_suites
from serve_app.inference.metrics import F1Definition
from serve_app.mlflow_client import PRODUCTION

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

WAYS_OUT = "go back (python -m gate rollback), use another tracking.model_name, or override (--force --reason TEXT)"


@dataclass
class Judgement:
    """A decision that is not carried out yet. ``state``: how the registry stood, which it holds for.

    ``version``: the registered one with the candidate's weights, if any; ``folder``: the candidate's saved model; None
    when it has no score.
    """

    decision: Decision
    state: registry.State
    folder: Path | None
    version: ModelVersion | None


@dataclass(frozen=True)
class ScoredFolder:
    """A scored model and the saved-model folder that it was read from."""

    scored: Scored
    folder: Path


class Judge:
    """Gathers the evidence about one candidate and production, and applies rule and policy to it.

    What was fetched, scored and measured below ``folder`` is kept: judging again, when the registry has changed, takes
    as long as what is new in it, and what is registered in the end is the folder that was scored. Raises SuiteError for
    a suite that cannot be used: before minutes of scoring.
    """

    def __init__(self, client: MlflowClient, candidate: Candidate, settings: Settings, folder: Path) -> None:
        self._client, self._candidate, self._settings, self._folder = client, candidate, settings, folder
        self._suites = load_suites(settings.gate.behaviour_suites)
        self._new: tuple[ScoredFolder, TestSplit] | None = None
        self._behaviour: BehaviourReport | None = None
        self._old: tuple[str, ScoredFolder] | None = None  # the newest production that was scored, by version
        self._speeds: dict[str | None, list[Speed]] = {}  # beside which production version, if any
        self._readable: set[str] = set()  # versions whose artifact was found to have the candidate's weights

    def judge(self, state: registry.State, action: Literal["check", "promote"], *, force: bool = False) -> Judgement:
        """The decision about the candidate while the registry stands as ``state`` says. GateUsageError if it is a
        version that is not there any more."""
        gate = self._settings.gate
        version = _still_there(self._candidate, state)
        production = state.aliased(PRODUCTION)
        facts: list[Check] = [] if production is not None else _production_lost(self._client, state)
        new, split = self._score_candidate(facts)
        old = None
        if production is not None and split is not None and new is not None:
            old = self._score_production(production, split, new.scored, facts)
        if version is None and new is not None:
            unusable = str(production.version) if production is not None and old is None else None
            version = self._reusable(state, new.scored.score.key.weights_digest, unusable)
        facts.append(_not_rolled_back(self._client, state, version, new))
        evidence = self._evidence(new, old, split, production, facts)
        conclusion = judge_evidence(evidence, gate, force=force)
        passed_as: Literal["would_promote", "promoted"] = "would_promote" if action == "check" else "promoted"
        current = str(production.version) if production else None
        candidate = self._candidate
        decision = Decision(
            decision=passed_as if conclusion.outcome == "pass" else conclusion.outcome,
            reason=conclusion.reason,
            action=action,
            model_name=state.name,
            run_id=candidate.run_id,
            parent_run_id=candidate.parent_run_id,
            f1=evidence.candidate.f1 if evidence.candidate else None,
            baseline_f1=evidence.production.f1 if evidence.production else None,
            minimum_f1=gate.minimum_f1,
            model_version=str(version.version) if version else None,
            baseline_version=current,
            production_version=current,
            test_digest=split.digest if split else candidate.test_digest,
            config_digest=candidate.config_digest,
            policy=gate,
            evidence=evidence,
            checks=conclusion.checks,
            force=force,
        )
        return Judgement(decision, state, new.folder if new else None, version)

    def _score_candidate(self, facts: list[Check]) -> tuple[ScoredFolder | None, TestSplit | None]:
        if self._new is None:
            try:
                self._new = score_candidate(
                    self._client, self._candidate, self._settings.serving.precision, self._folder
                )
            except ScoringError as error:
                facts.append(Check(name="candidate_score", passed=False, message=str(error), overridable=False))
                return None, None
        facts.append(scored_fact("candidate_score", self._new[0].scored.score))
        return self._new

    def _score_production(
        self, production: ModelVersion, split: TestSplit, candidate: Scored, facts: list[Check]
    ) -> ScoredFolder | None:
        """Production with its score on the candidate's split, under the candidate's definition of F1."""
        number = str(production.version)
        if self._old is None or self._old[0] != number:
            self._old = None
            store = ScoreStore(self._client, active_run_id(self._client, production.run_id))
            try:
                model = fetch_version(self._client, production, self._folder / f"production-{number}")
                scored = score_model(
                    model,
                    split,
                    precision=self._settings.serving.precision,
                    find=store.find,
                    definition=F1Definition.from_key(candidate.score.key.f1_definition),
                    what=f"production (version {number})",
                )
            except ScoringError as error:
                message = f"production cannot be scored on the candidate's test split: {error}. Ways out: {WAYS_OUT}"
                facts.append(Check(name="production_score", passed=False, message=message))
                return None
            if scored.new:
                store.keep(scored.score, split, scored.probabilities)
            self._old = number, ScoredFolder(scored, model)
        facts.append(scored_fact("production_score", self._old[1].scored.score))
        return self._old[1]

    def _reusable(self, state: registry.State, digest: str, unusable: str | None) -> ModelVersion | None:
        """A registered version with these weights, whose artifact is really there."""
        version = next(reversed(state.with_weights(digest)), None)
        if version is None or str(version.version) == unusable:
            return None
        number = str(version.version)
        if number not in self._readable:
            if not same_weights(self._client, version, digest, self._folder / f"registered-{number}"):
                logger.warning("version %s has the same weights, but its artifact cannot be read", number)
                return None
            self._readable.add(number)
        return version

    def _evidence(
        self,
        new: ScoredFolder | None,
        old: ScoredFolder | None,
        split: TestSplit | None,
        production: ModelVersion | None,
        facts: list[Check],
    ) -> Evidence:
        version = str(production.version) if production is not None else None
        if new is None or split is None:
            return Evidence(production_exists=production is not None, production_version=version, facts=facts)
        if self._behaviour is None:
            try:
                self._behaviour = behaviour_of(new.scored.engine, self._suites)
            except BehaviourError as error:
                facts.append(Check(name="behaviour", passed=False, message=str(error), overridable=False))
        beside = version if old is not None else None
        if beside not in self._speeds:
            both = [new] if old is None else [new, old]
            rounds = ROUNDS_TO_INFORM if self._settings.gate.max_latency_ratio is None else ROUNDS
            measured = [(each.scored.engine, each.folder) for each in both]
            self._speeds[beside] = measure_speed(measured, split.texts, rounds)
        speeds = self._speeds[beside]
        return Evidence(
            production_exists=production is not None,
            production_version=version,
            candidate=new.scored.score,
            production=old.scored.score if old else None,
            comparison=_compared(new.scored, old.scored, split) if old else None,
            candidate_speed=speeds[0],
            production_speed=speeds[1] if old else None,
            behaviour=self._behaviour,
            facts=facts,
        )


def score_candidate(
    client: MlflowClient, candidate: Candidate, precision: str, folder: Path
) -> tuple[ScoredFolder, TestSplit]:
    """The candidate's saved model (copied below ``folder``) with its score, which is stored, on its frozen test split.

    Raises ScoringError for whatever keeps it from having a score.
    """
    store = ScoreStore(client, None if candidate.run_deleted else candidate.run_id)
    model = fetch_model(client, candidate, folder / "candidate")
    split = read_test_split(fetch_test_split(client, candidate, folder), candidate.test_digest)
    definition = F1Definition.from_key(candidate.f1_definition) if candidate.f1_definition else None
    scored = score_model(model, split, precision=precision, find=store.find, definition=definition, what=candidate.what)
    if scored.new:
        store.show(scored.score, split.labels, scored.probabilities)
        store.keep(scored.score, split, scored.probabilities)
    return ScoredFolder(scored, model), split


def _still_there(candidate: Candidate, state: registry.State) -> ModelVersion | None:
    """A registered candidate as it is now: it may have been rolled back or removed since it was looked up."""
    if candidate.version is None:
        return None
    number = str(candidate.version.version)
    version = state.version(number)
    if version is None:
        raise GateUsageError(f"version {number} of model '{state.name}' was removed while it was judged")
    return version


def _production_lost(client: MlflowClient, state: registry.State) -> list[Check]:
    """A failed check if there was a production version and somebody deleted it, or its alias, in MLflow: that is not
    the same as no production yet. A model that was deleted as a whole starts anew."""
    last = audit.last_holder(client, state.name, PRODUCTION)
    if last is None:
        return []
    what = "no longer has the alias" if state.version(last) else "was deleted"
    message = f"production of {state.name} was version {last}, which {what} outside the gate. Ways out: {WAYS_OUT}"
    return [Check(name="production_version", passed=False, message=message)]


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


def _not_rolled_back(
    client: MlflowClient, state: registry.State, version: ModelVersion | None, new: ScoredFolder | None
) -> Check:
    since = audit.rolled_back_since(client, state, version, new.scored.score.key.weights_digest if new else None)
    what = "these weights were" if version is None else f"the weights of version {version.version} were"
    if since is None:
        return Check(name=NOT_ROLLED_BACK, passed=True, message=f"{what} not rolled back")
    message = f"{what} rolled back ({since}): that needs --force --reason TEXT"
    return Check(name=NOT_ROLLED_BACK, passed=False, message=message)
