"""Integrated gradients: they add up, find the word that decides, know its place, and leave the model alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.inference.engine import Engine
from serve_app.inference.explanation import Attributions, Explainer
from serve_app.inference.families import FAMILIES, new_distilbert, new_network
from serve_app.inference.packing import pack
from serve_app.inference.tokenizing import LocatedTokens
from tests.tiny import write_tiny_model

LABELS = ("bad", "fine", "great")
SIZES = {"vocabulary_size": 40, "width": 16}
DISTILBERT = {**SIZES, "max_length": 32, "layers": 2, "heads": 2, "feed_forward_width": 32}


def located(ids: list[int]) -> LocatedTokens:
    """A text of one word per token, each of one character, between [CLS] and [SEP]."""
    count = len(ids)
    special = np.zeros(count, dtype=bool)
    special[[0, -1]] = True
    spans = np.stack([np.arange(count) - 1, np.arange(count)], 1)
    words = tuple((place, place + 1) for place in range(1, count - 1))
    return LocatedTokens(np.asarray(ids, dtype=np.int32), spans, special, words, False)


def model_of(family: str, precision: torch.dtype = torch.float32) -> torch.nn.Module:
    """Random weights, larger than at the begin of training: far from a straight line."""
    torch.manual_seed(3)
    model = (
        new_distilbert(labels=LABELS, **DISTILBERT)
        if family == "distilbert"
        else new_network(family, labels=LABELS, **SIZES)
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ngram" in name:
                weight.normal_(std=0.1)
            elif weight.ndim > 1:
                weight.mul_(15.0 if family == "distilbert" else 3.0)
        model.classifier.weight.mul_(5.0)
    return model.eval().to(precision)


TEXT = located([2, 11, 17, 5, 33, 17, 29, 8, 3])


def attributions(explanation: Attributions) -> np.ndarray:
    return np.asarray([word.attribution for word in explanation.words])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 0.01), (torch.bfloat16, 0.05)])
def test_attributions_add_up_to_the_difference(family, precision, tolerance):
    model = model_of(family, precision)
    explanation = Explainer(model, temperature=1.5).explain(TEXT, 1, 64)
    total = np.abs(attributions(explanation)).sum()
    assert total > 0.3  # or there was nothing to add up
    assert abs(explanation.completeness_gap) < tolerance * total
    with torch.inference_mode():
        probability = torch.softmax(model(pack([TEXT.ids])).float() / 1.5, 1)[0, 1].item()
    assert explanation.log_odds == pytest.approx(np.log(probability / (1 - probability)), abs=2 * tolerance)


def test_more_steps_leave_a_smaller_gap():
    explainer = Explainer(model_of("distilbert"), 1.0)
    gaps = [abs(explainer.explain(TEXT, 0, steps).completeness_gap) for steps in (1, 4, 32)]
    assert gaps[0] > gaps[1] > gaps[2]


def test_of_two_labels_one_is_the_opposite_of_the_other(tmp_path):
    engine = Engine.load(write_tiny_model(tmp_path / "model", rule=True), precision="fp32")
    tokens = engine.locate("the plot was good")
    negative, positive = (attributions(engine.explainer().explain(tokens, label, 32)) for label in (0, 1))
    np.testing.assert_allclose(negative, -positive, atol=1e-4)


def test_a_mean_of_embeddings_is_explained_exactly():
    model = new_network("avgnet", labels=LABELS[:2], ngrams=1, **SIZES).eval()
    explanation = Explainer(model, 1.0).explain(TEXT, 1, 1)
    with torch.no_grad():
        direction = (model.classifier.weight[1] - model.classifier.weight[0]) / len(TEXT.ids)
        expected = (model.embeddings.weight[TEXT.ids[1:-1]] @ direction).numpy()
    np.testing.assert_allclose(attributions(explanation), expected, atol=1e-5)


def test_an_ngram_counts_for_its_words():
    model = new_network("avgnet", labels=LABELS[:2], ngrams=2, **SIZES).eval()
    with torch.no_grad():
        model.embeddings.weight.zero_()
        pair = model.embedded(torch.tensor([11, 17]))[1]
        rows = (model.ngram_embeddings.weight == pair).all(1)
        assert rows.all()  # n-grams begin as zeros
        ids = torch.from_numpy(TEXT.ids).long()
        ((_, buckets),) = model._ngrams(ids, torch.arange(len(ids)))
        model.ngram_embeddings.weight[buckets[1]] = 1.0  # of 11 and 17
        model.ngram_embeddings.weight[buckets[0]] = 1.0  # of [CLS] and 11
        step = (model.classifier.weight[1] - model.classifier.weight[0]).sum().item() / (len(ids) + len(buckets))
    explanation = Explainer(model, 1.0).explain(TEXT, 1, 2)
    np.testing.assert_allclose(attributions(explanation), [1.5 * step, 0.5 * step, 0, 0, 0, 0, 0], atol=1e-6)


def test_the_word_that_decides_is_found(tmp_path):
    engine = Engine.load(write_tiny_model(tmp_path / "model", rule=True), precision="fp32")
    text = "the movie was Good and the plot was fine"
    explanation = engine.explainer().explain(engine.locate(text), 1, 32)
    strengths = {text[word.start : word.end]: word.attribution for word in explanation.words}
    good = strengths.pop("Good")
    assert good > 3.0
    assert max(map(abs, strengths.values())) < 0.05 * good
    assert explanation.baseline_log_odds < 0 < explanation.log_odds


def test_words_have_their_places_in_the_text(tmp_path):
    engine = Engine.load(write_tiny_model(tmp_path / "model"))
    text = "  The 🎬 gooood naïve\tmovie, it's\u0000 good!  "
    tokens = engine.locate(text)
    np.testing.assert_array_equal(tokens.ids, engine.tokenize([text]).tokens[0])
    spans = [(word.start, word.end) for word in engine.explainer().explain(tokens, 0, 2).words]
    assert [text[start:end] for start, end in spans] == [
        "The", "🎬", "gooood", "naïve", "movie", ",", "it", "'", "s", "good", "!",
    ]  # fmt: skip
    assert len(tokens.ids) > len(spans) + 2  # some word was in pieces


def test_a_cut_text_is_explained_as_the_model_reads_it(tmp_path):
    engine = Engine.load(write_tiny_model(tmp_path / "model", max_length=16))
    text = "good movie " * 20
    tokens = engine.locate(text)
    assert tokens.truncated
    np.testing.assert_array_equal(tokens.ids, engine.tokenize([text]).tokens[0])
    words = engine.explainer().explain(tokens, 0, 2).words
    assert [text[word.start : word.end] for word in words] == ["good", "movie"] * 7
    assert not engine.locate("good movie").truncated


def test_a_text_of_which_no_token_is_left(tmp_path):
    engine = Engine.load(write_tiny_model(tmp_path / "model"))
    explanation = engine.explainer().explain(engine.locate("\u0301"), 0, 4)
    assert explanation.words == []
    assert explanation.completeness_gap == pytest.approx(0, abs=1e-5)


def test_the_model_is_left_alone_and_its_weights_are_not_copied():
    model = model_of("distilbert")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    flags = [weight.requires_grad for weight in model.parameters()]
    explainer = Explainer(model, 1.0)
    explainer.explain(TEXT, 1, 8)
    assert not model.training
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    twin = {name: weight.data_ptr() for name, weight in explainer._twin.named_parameters()}
    own = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    assert {name for name in own if own[name] != twin[name]} == {"distilbert.embeddings.word_embeddings.weight"}


def test_work_can_be_given_up_between_batches():
    calls = []

    def go_on() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    long = located([2, *[11, 17] * 14, 3])  # 30 tokens: 17 points to a batch
    with pytest.raises(TimeoutError):
        Explainer(model_of("distilbert"), 1.0).explain(long, 1, 200, go_on)
    assert len(calls) == 3


def test_the_length_of_a_batch_changes_nothing(monkeypatch):
    explainer = Explainer(model_of("distilbert"), 1.0)
    whole = explainer.explain(TEXT, 1, 16)
    monkeypatch.setattr("serve_app.inference.explanation._BATCH_TOKENS", {"cpu": 1})
    np.testing.assert_allclose(attributions(explainer.explain(TEXT, 1, 16)), attributions(whole), atol=1e-5)


def test_a_saved_model_of_every_family_explains(tmp_path: Path):
    for family in FAMILIES:
        engine = Engine.load(write_tiny_model(tmp_path / family, family=family))
        assert len(engine.explainer().explain(engine.locate("a good movie"), 1, 4).words) == 3
