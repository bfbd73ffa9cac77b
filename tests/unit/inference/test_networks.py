"""The small networks: a text's logits are its own whatever stands beside it, and a saved model is the same model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from serve_app.inference.engine import Engine
from serve_app.inference.families import new_network
from serve_app.inference.folder import ModelFolderError
from serve_app.inference.networks import (
    AveragingNetwork,
    ConvolutionalNetwork,
    RecurrentNetwork,
    SmallNetwork,
)
from serve_app.inference.packing import pack
from serve_app.inference.token_ids import TokenizedTexts
from tests.tiny import tokens_of, write_tiny_model

VOCABULARY = 300
SIZES: dict[str, dict[str, Any]] = {
    "avgnet": {"width": 16, "ngrams": 3, "buckets": 500},
    "avgnet-words": {"width": 16, "ngrams": 1},
    "cnet": {"width": 16, "filters": 12, "narrowest_window": 2, "widest_window": 5},
    "cnet-even": {"width": 16, "filters": 12, "narrowest_window": 4, "widest_window": 4},
    "cnet-single": {"width": 16, "filters": 12, "narrowest_window": 1, "widest_window": 1},
    "rnn": {"width": 16, "hidden_width": 12, "layers": 2},
}


@pytest.fixture(params=SIZES)
def network(request: pytest.FixtureRequest) -> SmallNetwork:
    torch.manual_seed(0)
    family = request.param.partition("-")[0]
    made = new_network(family, labels=("a", "b", "c"), vocabulary_size=VOCABULARY, **SIZES[request.param])
    with torch.no_grad():  # as after some training: nothing is zero that a mistake could hide behind
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        made.embeddings.weight[0] = 0.0
    return made.eval()


def logits(network: SmallNetwork, texts: TokenizedTexts) -> torch.Tensor:
    with torch.inference_mode():
        return network(pack(list(texts)))


def one_by_one(network: SmallNetwork, texts: TokenizedTexts) -> torch.Tensor:
    return torch.cat([logits(network, texts.select([place])) for place in range(len(texts))])


@pytest.mark.parametrize("longest", [1, 2, 7, 60])
def test_packed_equals_one_text_at_a_time(network: SmallNetwork, longest: int) -> None:
    lengths = np.random.default_rng(longest).permutation([*range(1, longest + 1), 1, longest])
    texts = tokens_of(np.random.default_rng(1), lengths.tolist(), VOCABULARY)
    torch.testing.assert_close(logits(network, texts), one_by_one(network, texts), atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_one_text_at_a_time(network: SmallNetwork) -> None:
    texts = tokens_of(np.random.default_rng(2), [5, 1, 9, 9, 30, 2], VOCABULARY)
    alone = copy.deepcopy(network)
    network(pack(list(texts))).square().sum().backward()
    for text in texts:
        alone(pack([text])).square().sum().backward()
    for (name, ours), theirs in zip(network.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_bf16_probabilities_within_three_hundredths(network: SmallNetwork) -> None:
    texts = tokens_of(np.random.default_rng(3), [1, 4, 33, 200, 400], VOCABULARY)
    expected = logits(network, texts).softmax(-1)
    found = logits(copy.deepcopy(network).to(torch.bfloat16), texts).float().softmax(-1)
    assert (expected - found).abs().max() < 0.03


def test_every_token_counts_at_every_place(network: SmallNetwork) -> None:
    """Also the first, the last and those of a text shorter than the widest window."""
    for length in (1, 2, 5, 12):
        text = tokens_of(np.random.default_rng(length), [length], VOCABULARY)[0]
        # Under a maximum one token may hide behind another, so several replacements are tried.
        for place in range(length):
            others = [np.where(np.arange(length) == place, token, text).astype(np.int32) for token in range(5, 45)]
            found = logits(network, TokenizedTexts.from_lists([text, *others]))
            assert (found[1:] - found[0]).abs().max() > 1e-4, f"token {place} of {length}"


def test_training_computes_what_serving_does(network: SmallNetwork) -> None:
    texts = tokens_of(np.random.default_rng(5), [1, 4, 4, 33, 70], VOCABULARY)
    torch.testing.assert_close(network(pack(list(texts))), logits(network, texts), atol=1e-5, rtol=1e-5)


def by_definition(network: SmallNetwork, text: np.ndarray) -> torch.Tensor:
    """The features of one text, written down as the papers do."""
    ids = torch.from_numpy(text.astype(np.int64))
    embedded = network.embeddings(ids)
    if isinstance(network, AveragingNetwork):
        rows = [*embedded]
        hashed = ids
        for n in range(2, network.config.ngrams + 1):
            hashed = hashed[:-1] * 1_000_003 + ids[n - 1 :] * (2 * n + 1)
            rows += [*network.ngram_embeddings(hashed % network.config.buckets)]
        return torch.stack(rows).mean(0)
    if isinstance(network, ConvolutionalNetwork):
        maxima = []
        for filters in network.filters:
            window = filters.weight.shape[2]
            padded = functional.pad(embedded.T, ((window - 1) // 2, window // 2))
            maxima.append(torch.relu(filters(padded[None])[0]).amax(1))
        return torch.cat(maxima)
    assert isinstance(network, RecurrentNetwork)
    return network.lstm(embedded[:, None])[0][:, 0].amax(0)


def test_it_is_what_its_definition_says(network: SmallNetwork) -> None:
    texts = tokens_of(np.random.default_rng(4), [6, 1, 17, 3], VOCABULARY)
    with torch.inference_mode():
        expected = torch.stack([network.classifier(by_definition(network, text)) for text in texts])
    torch.testing.assert_close(logits(network, texts), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["avgnet", "cnet", "rnn"])
def test_saved_and_loaded_it_answers_the_same(family: str, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", family=family)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    for precision in ("fp32", "bf16"):
        engine = Engine.load(folder, precision=precision)  # compares with the logits of before it was saved
        assert engine.labels == ("negative", "positive")
        np.testing.assert_allclose(engine.predict(["the movie was good", "awful"]).sum(axis=1), 1.0, atol=1e-5)


def change_config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("cnet", {"family": "bert"}, "of the family 'bert', expected one of distilbert, avgnet, cnet, rnn"),
        ("cnet", {"family": None}, "of the family None, expected"),
        ("cnet", {"family": None, "model_type": "bert"}, "of the family 'bert', expected"),
        ("cnet", {"family": "rnn"}, "does not describe a model of family 'rnn'.*filters"),
        ("rnn", {"family": None, "model_type": "distilbert"}, "config.json has no vocab_size"),
        ("distilbert", {"activation": "relu"}, "activation 'relu', expected gelu"),
        ("distilbert", {"dim": 18}, r"model\.safetensors does not hold this model's weights"),
        ("distilbert", {"n_heads": 3}, "3 heads do not divide a width of 16"),
        ("avgnet", {"width": 17}, r"model\.safetensors does not hold this model's weights"),
        ("avgnet", {"width": None}, "does not describe a model of family 'avgnet'.*width"),
        ("avgnet", {"id2label": {"1": "a", "2": "b"}}, "does not describe"),
        ("avgnet", {"id2label": {"0": "positive", "1": "negative"}}, "same order"),
    ],
)
def test_a_config_of_another_model_is_refused(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path / "model", family=family)
    change_config(folder, **changes)
    with pytest.raises(ModelFolderError, match=message):
        Engine.load(folder)
