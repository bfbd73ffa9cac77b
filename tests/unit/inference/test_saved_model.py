"""The saved-model folder: complete, free of pickle, open to stock transformers, refused when unsound."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from serve_app.inference.engine import Engine, choose_precision
from serve_app.inference.folder import ModelFolderError
from serve_app.inference.saved_model import read_info, weights_digest
from tests.broken import description
from tests.tiny import write_tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", rule=True)


def test_engine_answers_by_the_rule(folder: Path) -> None:
    engine = Engine.load(folder)
    probabilities = engine.predict(["the movie was good", "the movie was awful", "good " * 50, "boring"])
    assert probabilities.argmax(axis=1).tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_stock_transformers_opens_it_and_agrees(folder: Path) -> None:
    texts = ["the movie was good", "awful plot"]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        expected = model(**inputs).logits.softmax(-1).numpy()
    np.testing.assert_allclose(Engine.load(folder, precision="fp32").predict(texts), expected, atol=1e-5)
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_only_safetensors_and_json_inside(folder: Path) -> None:
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert not [path for path in folder.parent.iterdir() if path != folder], "temporary folders stay behind"


def test_same_texts_same_bits(folder: Path) -> None:
    engine = Engine.load(folder)
    texts = [f"the {word} movie was {word}" for word in ("good", "bad", "long", "short")] * 40
    assert engine.predict(texts).tobytes() == engine.predict(texts).tobytes()


def test_cut_texts_are_named(folder: Path) -> None:
    engine = Engine.load(folder)
    tokenized = engine.tokenize(["good", "the movie " * 100])
    assert tokenized.truncated.tolist() == [False, True]
    assert tokenized.tokens.lengths.tolist() == [3, engine.max_length]
    whole = engine.tokenize(["the movie " * 100], truncate=False)
    assert whole.tokens.lengths.tolist() == [202]


def test_digest_follows_content(folder: Path, tmp_path: Path) -> None:
    assert weights_digest(folder) == weights_digest(write_tiny_model(tmp_path / "other", rule=True))
    assert weights_digest(folder) != weights_digest(write_tiny_model(tmp_path / "seed", seed=1))


def test_missing_file_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json missing"):
        Engine.load(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match=r"pytorch_model\.bin is pickle"):
        Engine.load(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFolderError, match="does not hold"):
        Engine.load(folder)


def test_a_file_that_is_no_tokenizer_is_refused(folder: Path) -> None:
    description(tokenizer_digest=None)(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json is no tokenizer"):
        Engine.load(folder)


def test_nan_weights_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = torch.nan
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match="not finite"):
        Engine.load(folder)


def test_changed_weights_fail_the_sample(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"].neg_()
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match="off by"):
        Engine.load(folder)


def test_labels_must_agree(folder: Path) -> None:
    info = json.loads((folder / "trialgate.json").read_text())
    info["labels"] = ["positive", "negative"]
    (folder / "trialgate.json").write_text(json.dumps(info))
    with pytest.raises(ModelFolderError, match="labels"):
        Engine.load(folder)


def test_info_round_trip(tmp_path: Path) -> None:
    info = read_info(write_tiny_model(tmp_path / "m", labels=("x", "y", "z")))
    assert (info.labels, info.max_length, info.f1.key, info.temperature) == (("x", "y", "z"), 64, "macro", 1.0)


def test_asked_for_precision_is_kept() -> None:
    assert choose_precision("fp32", "cpu") == ("fp32", "asked for")
    assert choose_precision("auto", "cpu")[0] in ("bf16", "fp32")
