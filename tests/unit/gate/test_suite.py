"""Suite files: what their templates expand to, and what a file that cannot be used is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import Settings
from gate.perturbations import PERTURBATIONS
from gate.suite import Case, Suite, SuiteError, load_suites, parse_suite, read_suite

HEAD = "name: own\nlabels: [bad, good]\nslots: {x: [a, b, c], y: [d, e]}\ntests:\n"


def suite(test: str) -> Suite:
    lines = "\n".join(f"    {line}" for line in test.strip().splitlines())
    return parse_suite(f"{HEAD}  -\n    capability: words\n    description: some words\n{lines}\n".encode(), "own.yaml")


def cases(test: str) -> list[Case]:
    return list(suite(test).tests[0][1])


def test_templates_stand_for_every_combination_up_to_samples() -> None:
    texts = {case.text for case in cases("type: MFT\nsamples: 6\nexpect: {good: ['{x}{y}']}")}
    assert texts == {"ad", "ae", "bd", "be", "cd", "ce"}
    drawn = cases("type: MFT\nsamples: 5\nexpect: {good: ['{x}{y}']}")
    assert len({case.text for case in drawn}) == 5
    assert {case.text for case in drawn} < texts
    assert {case.expected for case in drawn} == {"good"}


def test_a_slot_has_the_same_word_wherever_it_stands() -> None:
    for case in cases("type: INV\nsamples: 6\npairs: [['{x} {y}', '{y} {x} {x}']]"):
        first, second = case.text.split()
        assert case.changed == f"{second} {first} {first}"


def test_a_test_has_slots_of_its_own() -> None:
    assert cases("type: MFT\nslots: {x: [z]}\nexpect: {bad: ['{x}']}") == [Case("z", expected="bad")]


def test_ways_to_change_a_text() -> None:
    assert cases("type: INV\nvary: x\ntexts: ['{x}!']") == [Case("a!", "b!"), Case("a!", "c!")]
    assert cases("type: DIR\ntoward: good\nappend: [F., G.]\ntexts: [E.]") == [Case("E.", "E. F."), Case("E.", "E. G.")]
    assert cases("type: DIR\ntoward: good\nappend: F.\ntexts: [E.]") == [Case("E.", "E. F.")]
    assert cases("type: INV\nperturb: upper_case\ntexts: [e]") == [Case("e", "E")]


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_changes_a_sentence_and_always_alike(name: str) -> None:
    sentence = "The Acting was never boring."
    changed = PERTURBATIONS[name](sentence)
    assert changed != sentence
    assert changed == PERTURBATIONS[name](sentence)


def test_what_the_perturbations_do() -> None:
    text = "It was superb."
    swapped = PERTURBATIONS["typo"](text)
    different = [place for place in range(len(text)) if text[place] != swapped[place]]
    assert len(different) == 2
    assert different[1] == different[0] + 1
    assert different[0] >= text.index("superb") + 1
    assert sorted(swapped) == sorted(text)
    assert PERTURBATIONS["typo"]("it was so-so") == "it was so-so"
    assert PERTURBATIONS["exclamation_marks"](text) == "It was superb!!!"
    long = PERTURBATIONS["filler_after"](text)
    assert long.startswith(text)
    assert 100 <= len(long.split()) < 115
    assert PERTURBATIONS["filler_before"](text).endswith(f". {text}")
    assert PERTURBATIONS["filler_after"](long) == long


WORD = st.text("abcdefgh", min_size=1, max_size=4)


@given(st.lists(WORD, min_size=1, max_size=9), st.lists(WORD, min_size=1, max_size=9), st.integers(1, 20))
def test_expansion_is_the_same_every_time_and_whatever_stands_beside(
    first: list[str], second: list[str], samples: int
) -> None:
    test = {"capability": "words", "type": "MFT", "description": "d", "samples": samples, "expect": {"y": ["{p}-{q}"]}}
    file = {"name": "own", "labels": ["y"], "slots": {"p": first, "q": second}, "tests": [test]}
    more = {**file, "tests": [{**test, "expect": {"y": ["something else", "{q}"]}}, test]}
    alone, again, beside = (parse_suite(yaml.safe_dump(content).encode(), "f") for content in (file, file, more))
    assert alone == again
    assert alone.tests[0][1] == beside.tests[1][1]
    assert len(alone.tests[0][1]) == min(samples, len(first) * len(second))


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("type: XYZ", ["test 1 (words)", "XYZ", "'MFT', 'INV', 'DIR'"]),
        ("texts: [a]", ["test 1 (words)", "type"]),
        ("type: MFT\nexpects: {good: [a]}", ["test 1 (words): expects", "did you mean 'expect'"]),
        ("type: MFT\nexpect: {great: [a]}", ["expect", "'great'", "bad, good"]),
        ("type: MFT\nexpect: {good: ['{z}']}", ["expect", "no slot 'z'", "x, y"]),
        ("type: MFT\nexpect: {good: [no]}", ["expect.good.0", "False", "quotes"]),
        ("type: MFT\nexpect: {good: []}", ["expect.good", "at least 1 item"]),
        ("type: MFT\nsamples: 0\nexpect: {good: [a]}", ["samples", "found 0"]),
        ("type: INV\nperturb: tpyo\ntexts: [a]", ["perturb", "'tpyo'", "typo"]),
        ("type: INV\nperturb: typo\ntexts: [it is]", ["typo leaves the text as it is", "'it is'"]),
        ("type: INV\ntexts: [a]", ["expected pairs, or texts with one of", "none with texts"]),
        ("type: INV\nvary: x\nperturb: typo\ntexts: ['{x}']", ["perturb, vary with texts"]),
        ("type: INV\nvary: w\ntexts: ['{w}']", ["vary", "'w'"]),
        ("type: INV\nvary: x\ntexts: ['{y}']", ["texts", "has no {x}"]),
        ("type: INV\ntexts: [a]\npairs: [[a, b]]", ["pairs already say"]),
        ("type: INV\npairs: [[a]]", ["pairs.0.1", "required"]),
        ("type: INV\npairs: [[a, a]]", ["leaves the text as it is"]),
        ("type: DIR\ntoward: great\npairs: [[a, b]]", ["toward", "'great'"]),
        ("type: DIR\npairs: [[a, b]]", ["toward", "required"]),
        ("type: DIR\ntoward: good\nmin_change: 2\npairs: [[a, b]]", ["min_change", "found 2"]),
    ],
)
def test_a_bad_test_is_named_with_file_and_field(test: str, words: list[str]) -> None:
    with pytest.raises(SuiteError) as caught:
        suite(test)
    for word in ["own.yaml: test 1", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- a", ["must hold name, labels and tests", "found list"]),
        ("", ["found NoneType"]),
        ("name: [", ["not valid YAML", "quotes"]),
        ("\x00", ["not valid YAML"]),
        ("name: own\nlabels: [a]\ntests: []", ["tests", "at least 1 item"]),
        ("name: own\nlabels: [a]\ntests: 3", ["tests", "list"]),
        ("name: own\nlabels: [a]\ntests: [3]", ["test 1"]),
        ("name: Own!\nlabels: [a]\ntests: [3]", ["name", "'Own!'"]),
        ("name: own\nlabel: [a]\ntests: [3]", ["label: there is no such field; did you mean 'labels'?"]),
    ],
)
def test_a_bad_file_is_named_with_its_field(content: str, words: list[str]) -> None:
    with pytest.raises(SuiteError) as caught:
        parse_suite(content.encode(), "own.yaml")
    for word in ["own.yaml", *words]:
        assert word in str(caught.value)


def test_suites_are_found_by_bare_name_path_and_url(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(HEAD + "  - {capability: a, type: MFT, description: d, expect: {good: [x]}}\n", encoding="utf-8")
    shipped, own = load_suites(["sentiment", str(path)])
    assert (shipped.name, own.name) == ("sentiment", "own")
    assert read_suite(path.as_uri()).digest == own.digest
    with pytest.raises(SuiteError, match="there is no suite 'sentimant'; shipped: sentiment"):
        load_suites(["sentimant"])
    with pytest.raises(SuiteError, match="missing.yaml cannot be read"):
        load_suites([str(tmp_path / "missing.yaml")])
    with pytest.raises(SuiteError, match="two suites are called 'own'"):
        load_suites([str(path), path.as_uri()])


def test_the_shipped_suite_covers_what_it_promises() -> None:
    shipped = read_suite("sentiment")
    assert {"vocabulary", "negation", "concession", "time", "intensity", "typos", "case", "punctuation", "names",
            "length", "added sentiment", "other opinions"} <= set(shipped.capabilities)  # fmt: skip
    everything = [case for _, cases in shipped.tests for case in cases]
    assert 150 <= len(everything) <= 400
    assert not [case for case in everything if "{" in case.text + (case.changed or "")]


def test_the_suite_and_the_settings_of_the_document_are_valid() -> None:
    document = (Path(__file__).resolve().parents[3] / "docs" / "gate.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)
    suites = [parse_suite(block.encode(), "docs/gate.md") for block in blocks if block.startswith("name:")]
    settings = [yaml.safe_load(block) for block in blocks if not block.startswith("name:")]
    assert [suite.name for suite in suites] == ["hotels"]
    assert settings
    for values in settings:
        Settings.model_validate(values)
    for name in PERTURBATIONS:
        assert f"`{name}`" in document
