"""The model card: true to its facts, the same in both forms, and harmless whatever its texts say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from markdown_it import MarkdownIt

from gate.document import Code, Items, Paragraph, Section, Table, Verbatim, escaped, markdown, shortened
from gate.model_card import DESCRIPTION_LIMIT, Card, DataRecord, Event, card_description, card_html, card_markdown
from tests.unit.gate.decisions import RECORD, RUN, SEARCH, behaviour, decided, evidence, rolled_back
from tests.unit.gate.page_reader import HOSTILE, PageReader

_MARKDOWN = MarkdownIt("commonmark").enable("table")


def _data(labels: Sequence[str], provenance: str = "csv reviews.csv") -> DataRecord:
    classes = {split: dict.fromkeys(labels, texts) for split, texts in (("train", 4000), ("test", 500))}
    counts = {"read": 9100, "duplicates_removed": 80, "conflicting_rows_removed": 20}
    return DataRecord(provenance=provenance, source={"train": counts}, train_in_test=3, test_from_train=True,
                      classes=classes, digests={"train": "d1" * 32, "test": "ed" * 32})  # fmt: skip


def _card(**values: Any) -> Card:
    decision = values.pop("decision", None) or decided(evidence(texts=400))
    event = Event(decision=decision.decision, reason=decision.reason, decided_at=decision.decided_at,
                  decided_by=decision.decided_by, decision_id=RECORD)  # fmt: skip
    given = {
        "model_name": "trialgate-classifier", "version": "4", "registered_at": "2026-11-25T04:05:53+00:00",
        "run_id": RUN, "parent_run_id": SEARCH, "git_revision": "0" * 40, "max_length": 128,
        "settings": {"model.family": "distilbert", "model.checkpoint": "distilbert-base-uncased", "training.epochs": 3},
        "parameters": {"training.learning_rate": "0.00012"}, "data": _data(["negative", "positive"]),
        "decision": decision, "history": [event],
    }  # fmt: skip
    return Card.model_validate({**given, **values})


def _text(source: str) -> str:
    return PageReader(_MARKDOWN.render(source)).text


def test_the_card_tells_what_is_known() -> None:
    card = _card()
    score = card.evidence.candidate
    assert score is not None
    text = _text(card_markdown(card))
    for said in (
        "trialgate-classifier, version 4",
        "negative, positive",
        "distilbert, fine-tuned from distilbert-base-uncased",
        "the first 128 tokens",
        "csv reviews.csv",
        "Removed before: 100 duplicates and texts with two labels, and 3 training texts",
        "8,000",
        "d1" * 32,
        str(score.intervals["f1"]),
        f"Weakest class: {min(score.per_class, key=lambda label: score.per_class[label].f1)}",
        "Weakest in behavioural tests: negation, 19 of 30 cases passed.",
        "The test texts were cut off the training source",
        f"{score.ece:.4f} apart",
        "ada@gatehouse",
        RECORD,
        'mlflow.pyfunc.load_model("models:/trialgate-classifier/4")',
        "http://127.0.0.1:8000/predict",
        "training.learning_rate",
        score.key.weights_digest,
    ):
        assert said in text, said


def test_markdown_and_html_say_the_same() -> None:
    card = _card()
    marked, html = (
        re.sub(r"\s+", "", text.replace("Model card:", ""))
        for text in (_text(card_markdown(card)), PageReader(card_html(card)).text.partition("Trialgate: model card")[2])
    )
    assert marked == html


def test_weak_spots_are_those_of_the_evidence() -> None:
    card = _card(decision=decided(evidence(texts=400, slices=["a", "b", "c"])))
    score = card.evidence.candidate
    assert score is not None
    weakest = min(score.slices, key=lambda each: each.f1.value)
    assert f"texts or more: {weakest.name}, F1 {weakest.f1} on" in _text(card_markdown(card))


def test_a_forced_version_says_so() -> None:
    decision = decided(evidence(texts=200, skill=1.0, production_skill=2.6), force=True, forced_reason="a leak")
    assert decision.decision == "forced"
    text = _text(card_markdown(_card(decision=decision)))
    assert "It was promoted against the gate's verdict" in text
    assert "Reason given: a leak" in text


def test_what_was_never_recorded_is_not_made_up() -> None:
    bare = Card(model_name="m", version="1", registered_at="2026-11-25T04:05:53+00:00", decision=rolled_back())
    for text in (_text(card_markdown(bare)), PageReader(card_html(bare)).text):
        assert text.count("not recorded") > 8
        assert "Weakest" not in text
        assert "None" not in text


def _hostile() -> Card:
    labels = [f"no {HOSTILE} | `x` ](javascript:alert(1))", "yes *b* _i_ # h ```\n\n# Title\n<b>"]
    found = evidence(texts=100, labels=labels, slices=[f"shop: {HOSTILE} | [a](http://b.example)"],
                     report=behaviour(HOSTILE))  # fmt: skip
    decision = decided(found, force=True, forced_reason=HOSTILE)
    event = Event(decision="forced", reason=HOSTILE, forced_reason="a|b\n\n- c", decided_by="`|`", decision_id="``|")
    return _card(
        decision=decision,
        history=[event],
        data=_data(labels, HOSTILE),
        settings={f"model.{HOSTILE}": HOSTILE},
        parameters={"a`b|c": "https://evil.example www.evil.example"},
        git_revision="```",
    )


def test_texts_of_users_are_only_texts() -> None:
    source = card_markdown(_hostile())
    read = PageReader(_MARKDOWN.render(source))
    assert not {"script", "img", "a", "em", "strong", "b"} & set(read.tags)
    assert read.tags.count("h1") == 1
    assert read.tags.count("h2") == card_markdown(_card()).count("\n## ")
    assert HOSTILE in read.text
    assert "a|b - c" in read.text
    for bare in ("www.evil", "https://evil"):
        assert bare not in source, "readers make links of bare addresses"
    page = PageReader(card_html(_hostile()))
    assert not {"script", "img", "a"} & set(page.tags)
    assert HOSTILE in page.text


def test_every_row_of_a_table_has_its_columns() -> None:
    for table in re.findall(r"<table>.*?</table>", _MARKDOWN.render(card_markdown(_hostile())), re.DOTALL):
        rows = [len(re.findall("<t[hd]>", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)]
        assert len(rows) > 1
        assert len(set(rows)) == 1


def test_a_description_is_whole_sections_within_the_limit() -> None:
    labels = [f"intent {number}" for number in range(77)]
    card = _card(decision=decided(evidence(texts=400, labels=labels, skill=4.0, production_skill=None)),
                 data=_data(labels))  # fmt: skip
    whole, description = card_markdown(card), card_description(card)
    assert len(whole) > DESCRIPTION_LIMIT
    assert len(description) <= DESCRIPTION_LIMIT
    assert description.startswith("# Model card: ")
    for part in description.split("\n## ")[1:-1]:
        assert part in whole
    assert f"artifact model\\_card.md of run {RECORD}" in description
    assert all(re.search(rf"\| intent {number} \|", whole) for number in range(77))
    assert "and 57 more" in whole


def test_a_short_document_is_not_shortened() -> None:
    sections = [Section("A", [Paragraph("one")]), Section("B", [Items(["two"])])]
    assert shortened("T", sections, 1000, "rest") == markdown("T", sections)
    assert shortened("T", sections, 25, "rest") == "# T\n\n## A\n\none\n\nrest\n"


@pytest.mark.parametrize("text", ["plain", HOSTILE, "a\nb", "1 < 2 & 3 > 2", "$x$ ~~y~~ `z` \\", "[a](b) ![c](d) | e"])
def test_escaped_text_shows_as_it_is(text: str) -> None:
    shown = _text(f"x {escaped(text)}").strip()
    assert shown == "x " + re.sub(r"\s+", " ", text)


@pytest.mark.parametrize("text", ["plain", "a`b", "``", "a|b", "", " x "])
def test_verbatim_cells_stay_in_their_cell(text: str) -> None:
    rendered = _MARKDOWN.render(markdown("T", [Section("S", [Table(["a", "b"], [[Verbatim(text), "end"]])])]))
    cells = [PageReader(cell).text.strip() for cell in re.findall(r"<td>.*?</td>", rendered)]
    assert cells == [text.strip(), "end"]


def test_code_ends_where_it_ends() -> None:
    rendered = _MARKDOWN.render(markdown("T", [Section("S", [Code("sh", "a\n```\nb"), Paragraph("after")])]))
    assert "<p>after</p>" in rendered
    assert "a\n```\nb" in rendered
