"""Scoring without MLflow: the frozen split, the order of things, what is refused, and reuse by key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.metrics import precision_recall_curve as sklearn_curve

from gate.evaluation import Score, ScoreKey
from gate.pictures import confusion_figure, precision_recall_curve, precision_recall_figure, reliability_figure
from gate.score_store import read_predictions, write_predictions
from gate.scoring import ScoringError, TestSplit, read_test_split, score_model
from gate.statistics import reliability
from serve_app.inference.digests import content_id, split_digest
from serve_app.inference.metrics import F1Definition
from tests.tiny import write_tiny_model

TEXTS = ["the movie was good", "awful plot", "good cast and good story", "the ending was boring", "it was fine"]
LABELS = [1, 0, 1, 0, 1]  # the last one is wrong for the rule model
NAMES = ("negative", "positive")


def _write(path: Path, order: list[int], digest: str | None = None, slices: dict[str, list[str]] | None = None) -> str:
    ids, texts, labels = ([content_id(TEXTS[i]) for i in order], [TEXTS[i] for i in order], [LABELS[i] for i in order])
    ordered = {column: [values[i] for i in order] for column, values in (slices or {}).items()}
    true = split_digest(ids, texts, labels, NAMES, ordered)
    metadata = {b"trialgate": json.dumps({"digest": digest or true, "labels": NAMES}).encode()}
    columns = {"id": ids, "text": texts, "label": pa.array(labels, pa.int32())}
    columns |= {f"slice:{column}": values for column, values in ordered.items()}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return true


def _none(key: ScoreKey, split: TestSplit) -> tuple[Score, np.ndarray] | None:
    return None


@pytest.fixture(scope="module")
def rule_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("rule") / "model", rule=True)


@pytest.fixture
def split(tmp_path: Path) -> TestSplit:
    digest = _write(tmp_path / "test.parquet", [0, 1, 2, 3, 4])
    return read_test_split(tmp_path / "test.parquet", digest)


def test_split_is_read_in_one_order_whatever_the_file_has(tmp_path: Path) -> None:
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    assert _write(one, [0, 1, 2, 3, 4]) == _write(two, [3, 1, 4, 0, 2])
    first, second = read_test_split(one, None), read_test_split(two, None)
    assert first.texts == second.texts
    assert first.labels.tolist() == second.labels.tolist()
    assert first.digest == second.digest


def test_slices_are_read_with_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    lengths = {"words": [str(len(text.split())) for text in TEXTS], "first": [text.split()[0] for text in TEXTS]}
    digest = _write(path, [3, 1, 4, 0, 2], slices=lengths)
    split = read_test_split(path, digest)
    assert split.slices == {
        "words": [str(len(text.split())) for text in split.texts],
        "first": [text.split()[0] for text in split.texts],
    }
    _write(path, [3, 1, 4, 0, 2], digest=digest, slices=lengths | {"first": ["the"] * 5})
    with pytest.raises(ScoringError, match="was changed"):
        read_test_split(path, digest)
    assert read_test_split(path, _write(path, [0, 1, 2, 3, 4])).slices == {}


@pytest.mark.parametrize("where", ["file", "run"])
def test_changed_split_is_refused(tmp_path: Path, where: str) -> None:
    path = tmp_path / "test.parquet"
    true = _write(path, [0, 1, 2, 3, 4], digest="0" * 64 if where == "file" else None)
    with pytest.raises(ScoringError, match="was changed"):
        read_test_split(path, true if where == "file" else "1" * 64)


def test_unreadable_split_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(ScoringError, match="cannot be read"):
        read_test_split(path, None)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(ScoringError, match="cannot be read"):
        read_test_split(path, None)


def test_score_of_a_known_model(rule_model: Path, split: TestSplit) -> None:
    scored = score_model(rule_model, split, precision="fp32", find=_none)
    score = scored.score
    assert scored.new
    assert scored.probabilities.shape == (5, 2)
    assert score.f1 == pytest.approx(0.8)  # precision 1, recall 2 of 3
    assert score.accuracy == pytest.approx(0.8)
    assert score.confusion == [[2, 0], [1, 2]]
    assert score.per_class["positive"].recall == pytest.approx(2 / 3)
    assert score.texts == 5
    assert score.texts_per_second > 0
    assert score.key.f1_definition == "binary:positive"
    assert (score.key.precision, score.key.device_type) == ("fp32", "cpu")
    again = score_model(rule_model, split, precision="fp32", find=_none).score
    assert (again.f1, again.log_loss, again.key) == (score.f1, score.log_loss, score.key)
    names = set(score.metrics())
    assert {"test_f1", "test_accuracy", "test_log_loss", "test_texts_per_second", "test_recall_positive"} <= names


def test_stored_score_is_taken_under_its_whole_key(rule_model: Path, split: TestSplit) -> None:
    asked: list[ScoreKey] = []
    first = score_model(rule_model, split, precision="fp32", find=_none)
    key = first.score.key

    def find(wanted: ScoreKey, of: TestSplit) -> tuple[Score, np.ndarray] | None:
        assert of is split
        asked.append(wanted)
        return (first.score, first.probabilities) if wanted == key else None

    stored = score_model(rule_model, split, precision="fp32", find=find)
    assert stored.score == first.score  # with its speed: the stored one
    assert stored.probabilities is first.probabilities
    assert not stored.new
    assert asked == [key]
    for field in ScoreKey.model_fields:
        assert key.model_copy(update={field: "other"}).folder != key.folder


@pytest.mark.parametrize(
    "changed",
    [{"f1": 1.0}, {"confusion": [[2, 0], [0, 3]]}, {"ece": 0.0}, {"temperature": 2.0}, {"slices": []}, {"texts": 9}],
    ids=lambda changed: next(iter(changed)),
)
def test_stored_score_that_contradicts_its_predictions_is_computed_again(
    rule_model: Path, split: TestSplit, changed: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    first = score_model(rule_model, split, precision="fp32", find=_none)
    forged = first.score.model_copy(update=changed)
    scored = score_model(rule_model, split, precision="fp32", find=lambda *_: (forged, first.probabilities))
    assert scored.new
    assert scored.score.model_copy(update={"texts_per_second": first.score.texts_per_second}) == first.score
    assert "contradicts the predictions" in caplog.text


@pytest.mark.parametrize(("value", "says"), [(np.nan, "cannot be evaluated"), (1.0, "contradicts the predictions")])
def test_stored_predictions_that_were_changed_are_computed_again(
    rule_model: Path, split: TestSplit, value: float, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = score_model(rule_model, split, precision="fp32", find=_none)
    changed = first.probabilities.copy()
    changed[split.labels == 1, 1] = value
    scored = score_model(rule_model, split, precision="fp32", find=lambda *_: (first.score, changed))
    assert scored.new
    np.testing.assert_array_equal(scored.probabilities, first.probabilities)
    assert says in caplog.text


def test_last_bits_are_no_contradiction(rule_model: Path, split: TestSplit) -> None:
    first = score_model(rule_model, split, precision="fp32", find=_none)
    elsewhere = first.score.model_copy(update={"log_loss": float(np.nextafter(first.score.log_loss, 1))})
    assert not score_model(rule_model, split, precision="fp32", find=lambda *_: (elsewhere, first.probabilities)).new


def test_predictions_are_kept_by_id_and_never_taken_for_other_texts(
    tmp_path: Path, rule_model: Path, split: TestSplit
) -> None:
    scored = score_model(rule_model, split, precision="fp32", find=_none)
    file = tmp_path / "predictions.parquet"
    write_predictions(file, split, list(NAMES), scored.probabilities)
    np.testing.assert_array_equal(read_predictions(file, split), scored.probabilities)
    table = pq.read_table(file)
    assert table.column_names == ["id", "label", "prediction", "probability: negative", "probability: positive"]
    assert not set(table.column("id").to_pylist()) & set(TEXTS)
    assert set(table.column("prediction").to_pylist()) == set(NAMES)
    with pytest.raises(ValueError, match="other texts"):
        read_predictions(file, dataclasses.replace(split, ids=[*split.ids[1:], "another"]))


def test_labels_are_matched_by_name(tmp_path: Path, rule_model: Path) -> None:
    swapped = ("positive", "negative")
    table = pa.table({"id": ["a", "b"], "text": ["good", "bad"], "label": pa.array([0, 1], pa.int32())})
    path = tmp_path / "test.parquet"
    digest = split_digest(["a", "b"], ["good", "bad"], [0, 1], swapped)
    metadata = {b"trialgate": json.dumps({"digest": digest, "labels": swapped}).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    score = score_model(rule_model, read_test_split(path, digest), precision="fp32", find=_none).score
    assert score.f1 == 1.0
    assert score.labels == list(swapped)


def test_other_labels_and_other_f1_are_refused(tmp_path: Path, rule_model: Path, split: TestSplit) -> None:
    other = write_tiny_model(tmp_path / "other", labels=("a", "b", "c"))
    with pytest.raises(ScoringError, match=r"labels \['a', 'b', 'c'\]"):
        score_model(other, split, precision="fp32", find=_none)
    with pytest.raises(ScoringError, match="never compared"):
        score_model(rule_model, split, precision="fp32", find=_none, definition=F1Definition("macro"))


def test_folders_that_must_not_be_promoted(tmp_path: Path, split: TestSplit) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(ScoringError, match=words):
            score_model(folder, split, precision="fp32", find=_none, what="it")

    refused(tmp_path / "nowhere", "does not load")
    incomplete = write_tiny_model(tmp_path / "incomplete")
    (incomplete / "model.safetensors").unlink()
    refused(incomplete, "model.safetensors missing")
    pickled = write_tiny_model(tmp_path / "pickled")
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(pickled, "not safetensors only")
    cut = write_tiny_model(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    refused(cut, "does not load")
    tokenizer = write_tiny_model(tmp_path / "tokenizer")
    (tokenizer / "tokenizer.json").write_text("{}")
    refused(tokenizer, "does not load")
    nan = write_tiny_model(tmp_path / "nan")
    weights = load_file(nan / "model.safetensors")
    weights["classifier.bias"] = np.full_like(weights["classifier.bias"], np.nan)
    save_file(weights, nan / "model.safetensors", metadata={"format": "pt"})
    refused(nan, "not finite")


def test_score_with_a_number_that_is_not_finite_cannot_be_made(rule_model: Path, split: TestSplit) -> None:
    score = score_model(rule_model, split, precision="fp32", find=_none).score
    for bad in ("NaN", "Infinity", "null"):
        text = score.model_dump_json().replace(f'"f1":{score.f1}', f'"f1":{bad}', 1)
        with pytest.raises(ValueError, match="f1"):
            Score.model_validate_json(text)


def test_precision_recall_curve_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        truth = rng.random(40) < 0.4
        scores = np.round(rng.random(40), 1)  # with ties
        precision, recall = precision_recall_curve(truth, scores)
        expected_precision, expected_recall, thresholds = sklearn_curve(truth, scores)
        np.testing.assert_allclose(precision[::-1], expected_precision[: len(thresholds)])
        np.testing.assert_allclose(recall[::-1], expected_recall[: len(thresholds)])
    assert precision_recall_curve(np.zeros(3, dtype=bool), np.arange(3.0))[1].tolist() == [0, 0, 0]


def test_pictures_take_any_class_name(tmp_path: Path) -> None:
    names = ["$x_{", "ä/b", "normal"]
    labels = np.array([0, 1, 2, 2])
    probabilities = np.full((4, 3), 1 / 3)
    figures = [
        confusion_figure([[1, 0, 0], [0, 1, 0], [1, 0, 1]], names, "title"),
        precision_recall_figure(labels, probabilities, names, None, "title"),
        precision_recall_figure(labels, probabilities, names, "normal", "title"),
        reliability_figure(reliability(labels, probabilities), "title"),
    ]
    for place, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{place}.png")
        assert (tmp_path / f"{place}.png").read_bytes().startswith(b"\x89PNG")
