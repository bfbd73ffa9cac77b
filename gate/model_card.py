"""The model card of a registered version: what it is, how good, where it fails, how it went live, how to call it.

One content, as Markdown (MLflow shows it as the version's description) and as HTML. Pure; ``gate.card_facts`` reads the
facts from MLflow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from configs.schema import ServingConfig
from gate.decision import Decision
from gate.document import Block, Cell, Code, Items, Paragraph, Section, Table, Verbatim, markdown, shortened
from gate.evaluation import Score
from gate.pages import f1_name, moment, render, signed, size
from gate.policy import SMALLEST_SLICE, Evidence

DESCRIPTION_LIMIT: Final = 5000  # characters of a version's description that MLflow's databases hold
_LABELS_SHOWN: Final = 20
_MISSING: Final = "not recorded"


class DataRecord(BaseModel):
    """What a search wrote of its data (its artifact ``data.json``), as far as a card tells it. Counts are of texts."""

    model_config = ConfigDict(extra="ignore")  # the search's document, which has more and may grow

    provenance: str
    source: dict[str, dict[str, int]] = {}
    train_in_test: int = 0
    test_from_train: bool = False
    classes: dict[str, dict[str, int]] = {}
    digests: dict[str, str] = {}


class Event(BaseModel):
    """A decision about the version, as the history has it."""

    model_config = ConfigDict(extra="forbid")

    decision: str
    alias: str = "production"  # what decisions were about before there were challengers
    reason: str = ""
    forced_reason: str | None = None
    decided_at: str | None = None
    decided_by: str | None = None
    decision_id: str


class Card(BaseModel):
    """Everything that a card is made of. What is None or empty was not recorded, or is gone."""

    model_config = ConfigDict(extra="forbid")

    model_name: str
    version: str
    registered_at: str = Field(description="UTC, ISO 8601.")
    run_id: str | None = None
    parent_run_id: str | None = None
    git_revision: str | None = None
    max_length: int | None = Field(None, description="Longest text that the model reads, tokens.")
    settings: dict[str, Any] = Field(default_factory=dict, description="model and training, by dotted name.")
    parameters: dict[str, str] = Field(default_factory=dict, description="What the search chose, by dotted name.")
    data: DataRecord | None = None
    decision: Decision | None = Field(None, description="The newest one that let the version pass.")
    history: list[Event] = Field(default_factory=list, description="Oldest first.")

    @property
    def title(self) -> str:
        """The card's heading."""
        return f"Model card: {self.model_name}, version {self.version}"

    @property
    def evidence(self) -> Evidence:
        """What the decision rests on; empty without one."""
        found = self.decision.evidence if self.decision else None
        return found or Evidence(production_exists=False)


def card_markdown(card: Card) -> str:
    """The whole card as Markdown."""
    return markdown(card.title, sections(card))


def card_html(card: Card) -> str:
    """The whole card as one self-contained HTML document."""
    kinds = [(section.title, [(type(block).__name__, block) for block in section.blocks]) for section in sections(card)]
    return render("card.html", title=card.title, card=card, sections=kinds, is_verbatim=_is_verbatim)


def card_description(card: Card) -> str:
    """The card as the description of its version: whole sections, as many as MLflow's limit lets in."""
    where = f"run {card.decision.decision_id}" if card.decision else "its decision's run"
    rest = f"Shortened: the whole card is the artifact model_card.md of {where}; python -m gate card prints it."
    return shortened(card.title, sections(card), DESCRIPTION_LIMIT, rest)


def sections(card: Card) -> list[Section]:
    """The content, what matters to most readers first."""
    score = card.evidence.candidate
    found = [
        Section("What it is", _what(card)),
        Section("Limits", [Items(_limits(card))]),
        Section("How to call it", _calls(card)),
        Section("How it went live", _history(card)),
        Section("Test results", _results(card)),
    ]
    if score is not None:
        found += [Section("Slices", _slices(score)), Section("Classes", _classes(score))]
    if card.evidence.behaviour is not None:
        found.append(Section("Behavioural tests", _behaviour(card)))
    found += [Section("Training data", _data(card)), Section("Hyperparameters", _hyperparameters(card)),
              Section("Digests", _digests(card))]  # fmt: skip
    return found


def _what(card: Card) -> list[Block]:
    score, speed = card.evidence.candidate, card.evidence.candidate_speed
    labels = score.labels if score else list((card.data.classes.get("train") if card.data else None) or {})
    more = f" and {len(labels) - _LABELS_SHOWN} more" if len(labels) > _LABELS_SHOWN else ""
    family = card.settings.get("model.family", "")
    checkpoint = card.settings.get("model.checkpoint")
    begun = f", fine-tuned from {checkpoint}" if checkpoint else ", trained from scratch" if family else ""
    rows: list[tuple[str, Cell]] = [
        ("Task", "assigns one label to a text"),
        ("Labels", ", ".join(labels[:_LABELS_SHOWN]) + more or _MISSING),
        ("Family", f"{family}{begun}" or _MISSING),
        ("Reads", f"the first {card.max_length} tokens of a text" if card.max_length else _MISSING),
        ("Size", f"{speed.parameters:,} parameters, {size(speed.bytes)}" if speed else _MISSING),
        ("Latency", f"{speed.latency_ms:.2f} ms for one text (median, where the gate ran)" if speed else _MISSING),
        ("Registered", moment(card.registered_at)),
        ("Run", Verbatim(card.run_id) if card.run_id else _MISSING),
        ("Search", Verbatim(card.parent_run_id) if card.parent_run_id else _MISSING),
    ]
    return [Table(["", ""], rows)]


def _limits(card: Card) -> list[str]:
    """What is known to be weak or unknown, from the data alone."""
    score, behaviour = card.evidence.candidate, card.evidence.behaviour
    source = card.data.provenance if card.data else _MISSING
    limits = [f"Language and domain of its training texts are unknown beyond their source ({source}). On other texts "
              "its scores are unknown too.",
              "Every text gets one of the labels, also a text that none of them fits."]  # fmt: skip
    if card.max_length:
        most = ServingConfig.model_fields["max_text_chars"].default
        limits.append(f"Of a longer text it reads the first {card.max_length} tokens; the rest does not count. The "
                      f"server refuses texts over {most:,} characters unless it is set otherwise.")  # fmt: skip
    if card.data and card.data.test_from_train:
        limits.append("The test texts were cut off the training source: the scores tell nothing of other sources.")
    if score is not None:
        limits += _weak_spots(score)
    failing = [each for each in (behaviour.capabilities if behaviour else []) if each.failures]
    if failing:
        worst = min(failing, key=lambda each: each.pass_rate)
        limits.append(f"Weakest in behavioural tests: {worst.name}, {worst.cases - worst.failures} of {worst.cases} "
                      "cases passed.")  # fmt: skip
    limits += [f"Suite {suite.name} of behavioural tests does not apply: {suite.not_applicable}."
               for suite in (behaviour.suites if behaviour else []) if suite.not_applicable]  # fmt: skip
    if card.decision is not None and card.decision.decision == "forced":
        limits.append(f"It was promoted against the gate's verdict ({card.decision.reason}). Reason given: "
                      f"{card.decision.forced_reason}")  # fmt: skip
    return limits


def _weak_spots(score: Score) -> list[str]:
    f1, name = score.intervals["f1"], f1_name(score.key.f1_definition)
    found = [f"{name} is known to lie between {f1.low:.4f} and {f1.high:.4f} (95 %), from {score.texts:,} test texts."]
    slices = [each for each in score.slices if each.texts >= SMALLEST_SLICE]
    if slices:
        weakest = min(slices, key=lambda each: each.f1.value)
        found.append(f"Weakest slice of {SMALLEST_SLICE} texts or more: {weakest.name}, F1 {weakest.f1} on "
                     f"{weakest.texts:,} texts.")  # fmt: skip
    label, worst = min(score.per_class.items(), key=lambda row: row[1].f1)
    found.append(f"Weakest class: {label}, F1 {worst.f1_interval} on {worst.support:,} texts.")
    calibrated = "calibrated" if score.temperature != 1.0 else "not calibrated"
    found.append(
        f"Its probabilities are {calibrated} (temperature {score.temperature:.3f}); on the test texts confidence and "
        f"accuracy lie {score.ece:.4f} apart on average (expected calibration error)."
    )
    return found


def _calls(card: Card) -> list[Block]:
    label = json.dumps(card.evidence.candidate.labels[0] if card.evidence.candidate else "LABEL")
    address = json.dumps(f"models:/{card.model_name}/{card.version}")
    request = (
        "curl -s http://127.0.0.1:8000/predict -H 'Content-Type: application/json' \\\n"
        '  -d \'{"text": "A text to classify."}\'\n'
        f'# {{"label": {label}, "score": 0.98, "probabilities": {{{label}: 0.98, ...}}, "truncated": false, '
        f'"model_version": "{card.version}"}}'
    )
    python = (
        f"import mlflow\n\nmodel = mlflow.pyfunc.load_model({address})\n"
        'model.predict(["A text to classify."])  # columns label, score and probabilities'
    )
    return [
        Paragraph("Over HTTP, while it is in production (with an API key where the server asks for one):"),
        Code("sh", request),
        Paragraph("In Python, where Trialgate is installed and MLFLOW_TRACKING_URI is set:"),
        Code("python", python),
    ]


def _history(card: Card) -> list[Block]:
    if not card.history:
        return [Paragraph(f"Decisions about this version: {_MISSING}.")]
    rows: list[list[Cell]] = [
        [moment(event.decided_at), event.decision, event.alias, event.decided_by or _MISSING,
         event.reason + (f" (reason given: {event.forced_reason})" if event.forced_reason else ""),
         Verbatim(event.decision_id)]
        for event in card.history
    ]  # fmt: skip
    return [Table(["when", "decision", "alias", "by", "why", "recorded as run"], rows)]


def _results(card: Card) -> list[Block]:
    score, comparison = card.evidence.candidate, card.evidence.comparison
    if score is None:
        return [Paragraph(f"Test results: {_MISSING}.")]
    rows = [
        [f1_name(score.key.f1_definition), str(score.intervals["f1"])],
        ["accuracy", str(score.intervals["accuracy"])],
        ["log loss, nats per text", str(score.intervals["log_loss"])],
        ["expected calibration error", f"{score.ece:.4f}"],
    ]
    if comparison is not None and card.decision is not None:
        found = comparison.whole.difference
        rows.append([f"F1 minus that of version {card.decision.baseline_version}, then in production",
                     f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]"])  # fmt: skip
    return [Paragraph(f"On {score.texts:,} frozen test texts, with 95 % bootstrap intervals."),
            Table(["metric", "value"], rows)]  # fmt: skip


def _slices(score: Score) -> list[Block]:
    if not score.slices:
        return [Paragraph("No slice of the test texts to tell of.")]
    rows = [[each.name, f"{each.texts:,}", str(each.f1), f"{each.accuracy:.4f}"] for each in score.slices]
    return [Table(["slice", "texts", "F1", "accuracy"], rows), Paragraph("Negation is looked for in English only.")]


def _classes(score: Score) -> list[Block]:
    rows = [[name, f"{found.support:,}", f"{found.precision:.4f}", f"{found.recall:.4f}", str(found.f1_interval)]
            for name, found in score.per_class.items()]  # fmt: skip
    return [Table(["class", "texts", "precision", "recall", "F1"], rows)]


def _behaviour(card: Card) -> list[Block]:
    report = card.evidence.behaviour
    assert report is not None
    rows = [[each.name, f"{each.cases - each.failures} of {each.cases}", f"{each.pass_rate:.3f}"]
            for each in report.capabilities]  # fmt: skip
    if not rows:
        return [Paragraph("No suite of behavioural tests applies to this model.")]
    return [Table(["capability", "cases passed", "pass rate"], rows)]


def _data(card: Card) -> list[Block]:
    data = card.data
    if data is None:
        return [Paragraph(f"Training data: {_MISSING}.")]
    found: list[Block] = [Paragraph(f"Source: {data.provenance}")]
    rows: list[Sequence[Cell]] = [
        [split, f"{sum(classes.values()):,}", _shares(classes), Verbatim(data.digests.get(split, _MISSING))]
        for split, classes in data.classes.items()
    ]
    if rows:
        found.append(Table(["split", "texts", "of each class", "digest"], rows))
    removed = sum(counts.get("duplicates_removed", 0) + counts.get("conflicting_rows_removed", 0)
                  for counts in data.source.values())  # fmt: skip
    found.append(Paragraph(f"Removed before: {removed:,} duplicates and texts with two labels, and "
                           f"{data.train_in_test:,} training texts that also stand in the test split."))  # fmt: skip
    return found


def _shares(classes: dict[str, int]) -> str:
    if len(classes) > _LABELS_SHOWN:
        return f"{len(classes)} classes, {min(classes.values()):,} to {max(classes.values()):,} texts each"
    return ", ".join(f"{name} {texts:,}" for name, texts in classes.items())


def _hyperparameters(card: Card) -> list[Block]:
    values = {**card.settings, **card.parameters}
    if not values:
        return [Paragraph(f"Hyperparameters: {_MISSING}.")]
    ordered = sorted(values.items(), key=lambda row: (row[0] not in card.parameters, row[0]))
    rows = [[Verbatim(name), str(value), "searched" if name in card.parameters else ""] for name, value in ordered]
    return [Table(["setting", "value", ""], rows)]


def _digests(card: Card) -> list[Block]:
    score, decision = card.evidence.candidate, card.decision
    rows = [
        ["weights", score.key.weights_digest if score else None],
        ["test split", decision.test_digest if decision else None],
        ["search settings", decision.config_digest if decision else None],
        ["code", card.git_revision],
    ]
    return [Table(["of", "digest"], [[str(name), Verbatim(value) if value else _MISSING] for name, value in rows])]


def _is_verbatim(cell: Cell) -> bool:
    return isinstance(cell, Verbatim)
