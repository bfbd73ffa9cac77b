"""The page of a decision: whole, true to the document, and harmless whatever its texts say."""

from __future__ import annotations

import re

import pytest

from configs.schema import GateConfig
from gate.decision import Decision
from gate.decision_page import decision_page, mark, verdict
from gate.pages import Scale, digits_to_tell, signed, worst_first
from gate.pictures import comparison_figure
from gate.policy import Evidence
from gate.rule import Check
from tests.unit.gate.decisions import RECORD, RUN, behaviour, decided, evidence, rolled_back
from tests.unit.gate.page_reader import HOSTILE, PageReader


def _kinds() -> dict[str, Decision]:
    better, worse = evidence(texts=300), evidence(texts=300, skill=1.2, production_skill=2.6)
    missing = Check(name="candidate_score", passed=False, message="the saved model cannot be read", overridable=False)
    unscorable = Check(name="production_score", passed=False, message="production cannot be scored")
    return {
        "promoted": decided(better),
        "first": decided(evidence(texts=300, production_skill=None)),
        "blocked": decided(worse),
        "forced": decided(worse, force=True, forced_reason="the old one leaks names"),
        "challenger": decided(better, alias="challenger", production_version="3", changed=False),
        "would_promote": decided(better, decision="would_promote", action="check", decision_id=None, decided_at=None),
        "unchanged": decided(better, model_version="3", production_version="3", changed=False, decision_id=None),
        "forced unchanged": decided(worse, force=True, forced_reason="r", model_version="3", production_version="3",
                                    changed=False, decision_id=None),
        "no score": decided(Evidence(production_exists=True, facts=[missing])),
        "production unscorable": decided(
            better.model_copy(update={"production": None, "comparison": None, "production_speed": None,
                                      "facts": [unscorable]})
        ),
        "rolled_back": rolled_back(),
        "rollback blocked": rolled_back(decision="blocked", reason="nothing to go back to", model_version=None,
                                        production_version="4", changed=False),
        "pruned": rolled_back(decision="pruned", action="prune", versions=["1", "2"], forced_reason=None),
    }  # fmt: skip


KINDS = _kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_decision_makes_a_sound_page(kind: str) -> None:
    decision = KINDS[kind]
    page = decision_page(decision)
    read = PageReader(page)
    assert verdict(decision).headline in read.text
    for check in decision.checks:
        assert re.sub(r"\s+", " ", check.message) in read.text
    assert (RECORD in read.text) == (decision.decision_id is not None)
    assert "script" not in read.tags
    assert not [value for name, value in read.attributes if name in ("src", "href") or name.startswith("on")]
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.parametrize(
    ("kind", "word", "tone"),
    [
        ("promoted", "Promoted", "good"),
        ("blocked", "Blocked", "bad"),
        ("forced", "Promoted by force", "warning"),
        ("challenger", "Challenger", "beside"),
        ("would_promote", "Would be promoted", "quiet"),
        ("unchanged", "Promoted", "quiet"),
        ("forced unchanged", "Promoted by force", "quiet"),
        ("rolled_back", "Rolled back", "back"),
        ("pruned", "Pruned", "quiet"),
    ],
)
def test_the_verdict_is_said_and_coloured(kind: str, word: str, tone: str) -> None:
    found = verdict(KINDS[kind])
    assert (found.word, found.tone) == (word, tone)
    assert f'class="card verdict {tone}"' in decision_page(KINDS[kind])


def test_the_page_has_the_numbers_of_the_evidence() -> None:
    decision = KINDS["promoted"]
    text = PageReader(decision_page(decision)).text
    assert decision.evidence is not None
    comparison, score = decision.evidence.comparison, decision.evidence.candidate
    assert comparison is not None
    assert score is not None
    for said in (
        f"{decision.f1:.4f}",
        f"{decision.baseline_f1:.4f}",
        signed(comparison.whole.difference.value),
        f"{comparison.gained} gained",
        f"{comparison.lost} lost",
        f"p = {comparison.mcnemar_p:.3g}",
        f"{score.ece:.4f}",
        "19 of 30",
        "The soup was not great.",
        score.key.weights_digest,
        "version 3 → version 4",
        "ada@gatehouse",
        "2026-11-25 04:05:53 UTC",
        "python -m gate replay decision.json",
        "python -m gate rollback --model-name trialgate-classifier --reason TEXT",
        *comparison.gained_examples[:5],
    ):
        assert said in text, said
    cells = re.search(r"candidate right ([\d,]+) \d+ gained candidate wrong \d+ lost ([\d,]+)", text)
    assert cells is not None
    assert int(cells[1]) + int(cells[2]) + comparison.gained + comparison.lost == comparison.whole.texts


def test_a_forced_decision_says_who_gave_which_reason_against_what() -> None:
    text = PageReader(decision_page(KINDS["forced"])).text
    assert "Reason given by ada@gatehouse: the old one leaks names" in text
    assert "forced against" in text
    assert "overridden" in text


def test_marks() -> None:
    check = Check(name="a", passed=False, message="b")
    assert mark(check) == "failed"
    assert mark(check.model_copy(update={"forced": True})) == "overridden"
    assert mark(check.model_copy(update={"passed": True})) == "ok"
    assert mark(check.model_copy(update={"blocking": False})) == "info"


def test_texts_of_users_are_only_texts() -> None:
    labels = [f"no {HOSTILE}", f"yes {HOSTILE}"]
    found = evidence(texts=120, labels=labels, slices=[f"column: {HOSTILE}"], report=behaviour(HOSTILE))
    assert found.comparison is not None
    hostile = {"gained_examples": [HOSTILE], "lost_examples": [HOSTILE]}
    found = found.model_copy(update={"comparison": found.comparison.model_copy(update=hostile)})
    policy = GateConfig(min_behaviour={HOSTILE: 0.5})
    decision = decided(found, policy=policy, force=True, forced_reason=HOSTILE, decided_by=HOSTILE, model_name=HOSTILE,
                       run_id=HOSTILE, config_digest=HOSTILE)  # fmt: skip
    page = decision_page(decision)
    read = PageReader(page)
    assert read.text.count("{{ 7 * 7 }}") > 10
    assert not {"script", "img"} & set(read.tags)
    assert "<script" not in page


def test_77_classes_show_the_worst_and_fold_the_rest() -> None:
    labels = [f"intent {number}" for number in range(77)]
    read = PageReader(decision_page(decided(evidence(texts=400, labels=labels, skill=4.0, production_skill=None))))
    assert "67 more classes" in read.text
    assert all(re.search(rf"intent {number}\b", read.text) for number in range(77))


def test_40_slices_show_the_worst_and_fold_the_rest() -> None:
    read = PageReader(decision_page(decided(evidence(texts=400, slices=[f"topic: {number}" for number in range(40)]))))
    assert read.tags.count("details") == 1
    assert "30 more slices" in read.text
    assert all(re.search(rf"topic: {number}\b", read.text) for number in range(40))


def test_long_reasons_and_names_stay_whole() -> None:
    reason = "because " * 600 + "END"
    page = decision_page(decided(evidence(texts=100), force=True, forced_reason=reason, model_name="m" * 200))
    assert "END" in page
    assert "m" * 200 in page


def test_f1s_that_differ_are_not_printed_alike() -> None:
    found = evidence(texts=100)
    decision = decided(found, f1=0.91234567, baseline_f1=0.91234512)
    text = PageReader(decision_page(decision)).text
    assert "0.912346" in text
    assert "0.912345" in text
    assert digits_to_tell(0.5, 0.5) == 4


@pytest.mark.parametrize("value", [0.0, 0.003, 0.4, 0.85, 0.97, 1.0])
def test_a_scale_holds_its_values(value: float) -> None:
    for other in (value, min(1.0, value + 0.02), 1.0):
        scale = Scale.over([value, other])
        assert 0.0 <= scale.low <= value + 1e-9
        assert other - 1e-9 <= scale.high <= 1.0
        assert scale.low < scale.high
    scale = Scale.around_zero([value, -0.02])
    assert scale.at(0.0) == "50.00%"
    assert scale.at(10.0) == "100.00%"
    assert scale.high >= value


def test_few_rows_are_all_shown_in_their_order() -> None:
    assert worst_first([3, 1, 2], float) == ([3, 1, 2], [])
    shown, rest = worst_first(range(30), float)
    assert list(shown) == list(range(29, 19, -1))
    assert sorted([*shown, *rest]) == list(range(30))


def test_the_forest_plot_takes_any_names_and_many_slices() -> None:
    slices = ["cost: $5 to $10", "x" * 300, *(f"topic: {number}" for number in range(45))]
    comparison = evidence(texts=200, slices=slices).comparison
    assert comparison is not None
    figure = comparison_figure(comparison)
    figure.canvas.draw()
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 31
    assert names[0] == "all texts (200)"
    assert max(map(len, names)) < 60


def test_the_run_is_named_in_the_command_that_overrides() -> None:
    assert (
        f"python -m gate promote --run-id {RUN} --model-name trialgate-classifier --force --reason TEXT"
        in PageReader(decision_page(KINDS["blocked"])).text
    )
    assert "--force" not in PageReader(decision_page(KINDS["no score"])).text  # nothing that force could override
