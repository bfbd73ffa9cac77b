"""Checkpoints as people have them: read, and then the same as in stock transformers, or refused with the fix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from configs.loading import ConfigError
from ray_jobs.tokens import open_checkpoint
from serve_app.inference.checkpoint import Checkpoint
from serve_app.inference.families import new_distilbert
from serve_app.inference.packing import pack
from serve_app.inference.tokenizing import TextTokenizer, learn_wordpiece, tokenize

TEXTS = ["the movie was good", "awful plot, boring acting: too long!", "a", "GOOD Café"]
LONGEST = 48  # tokens; the checkpoints have 64 positions
TOKENIZER = learn_wordpiece([*TEXTS, "the cafe was good but the film is bad"] * 2, 200, 64)
SIZES = {"n_layers": 2, "dim": 32, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64}
Weights = dict[str, torch.Tensor]


def written(folder: Path, model_class: Any = transformers.DistilBertForSequenceClassification, **config: Any) -> Path:
    """A checkpoint written by stock transformers, with weights large enough for a mistake to be seen."""
    torch.manual_seed(0)
    sizes = {**SIZES, "vocab_size": TOKENIZER.vocabulary_size, **config}
    model = model_class(transformers.DistilBertConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    for name, content in TOKENIZER.files.items():
        (folder / name).write_bytes(content)
    return folder


def with_weights(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    changed = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    return folder


def with_config(folder: Path, **values: Any) -> Path:
    """``config.json`` with ``values``; None removes a key."""
    path = folder / "config.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def with_vocabulary_file(folder: Path, **tokenizer_config: Any) -> Path:
    """With ``vocab.txt`` instead of ``tokenizer.json``."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    return folder


def with_tokenizer(folder: Path, **values: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def half(folder: Path, dtype: torch.dtype) -> Path:
    return with_weights(folder, lambda weights: {name: tensor.to(dtype) for name, tensor in weights.items()})


def sharded(folder: Path) -> Path:
    model = transformers.DistilBertForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def renamed(weights: Weights, norms: tuple[str, ...]) -> Weights:
    def old(name: str) -> str:
        if not any(norm in name for norm in norms):
            return name
        return name.replace(".weight", ".gamma").replace(".bias", ".beta")

    return {old(name): tensor for name, tensor in weights.items()}


def with_older_extras(weights: Weights) -> Weights:
    """What files of other versions hold as well: a buffer, a copy of what is tied, a head of another task."""
    name = "distilbert.embeddings.word_embeddings.weight"
    positions = {"distilbert.embeddings.position_ids": torch.arange(64)[None]}
    return weights | positions | {"vocab_projector.weight": weights[name].clone(), "qa_outputs.bias": torch.ones(2)}


def without_positions(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if "position_embeddings" not in name}


DEFAULTS = dict.fromkeys(  # what config.json says only where it is not transformers' default
    ["dropout", "attention_dropout", "seq_classif_dropout", "activation", "pad_token_id", "sinusoidal_pos_embds",
     "max_position_embeddings"]
)  # fmt: skip

READ: dict[str, Callable[[Path], Path]] = {
    "a classifier": written,
    "the encoder alone": lambda folder: written(folder, transformers.DistilBertModel),
    "a masked language model": lambda folder: written(folder, transformers.DistilBertForMaskedLM),
    "a question answerer": lambda folder: written(folder, transformers.DistilBertForQuestionAnswering),
    "gamma and beta": lambda folder: with_weights(written(folder), lambda w: renamed(w, ("LayerNorm",))),
    "more weights": lambda folder: with_weights(written(folder), with_older_extras),
    "fp16": lambda folder: half(written(folder), torch.float16),
    "bf16": lambda folder: half(written(folder), torch.bfloat16),
    "shards": lambda folder: sharded(written(folder)),
    "sinusoids": lambda folder: written(folder, sinusoidal_pos_embds=True),
    "sinusoids that are not stored": lambda folder: with_weights(
        written(folder, sinusoidal_pos_embds=True), without_positions
    ),
    "a config of few keys": lambda folder: with_config(written(folder, max_position_embeddings=512), **DEFAULTS),
    "names of BERT in the config": lambda folder: with_config(
        written(folder), dim=None, n_heads=None, n_layers=None,
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2,
    ),
    "another padding token": lambda folder: written(folder, pad_token_id=3),
    "vocab.txt": lambda folder: with_vocabulary_file(written(folder)),
    "a lower-casing vocab.txt": lambda folder: with_vocabulary_file(written(folder), do_lower_case=True),
    "a cased vocab.txt": lambda folder: with_vocabulary_file(written(folder), do_lower_case=False),
    "padding and truncation in tokenizer.json": lambda folder: with_tokenizer(
        written(folder),
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "[PAD]"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("make", READ.values(), ids=READ.keys())
def test_read_and_equal_to_stock(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "checkpoint")
    checkpoint, tokenizer = open_checkpoint(str(folder), "main", LONGEST)
    stock: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    judge_texts(tokenizer, folder)
    judge_logits(checkpoint, tokenizer, stock)


def judge_texts(tokenizer: TextTokenizer, folder: Path) -> None:
    """Also as a saved model has it, whose tokenizer's files are those that were imported."""
    found = [row.tolist() for row in tokenize(tokenizer, TEXTS, LONGEST).tokens]
    stock = transformers.AutoTokenizer.from_pretrained(folder)
    assert found == [stock(text, padding=False, truncation=False)["input_ids"] for text in TEXTS]
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    saved = transformers.AutoTokenizer.from_pretrained(folder)
    assert found == [saved(text, padding=False, truncation=False)["input_ids"] for text in TEXTS]


def judge_logits(checkpoint: Checkpoint, tokenizer: TextTokenizer, stock: Any) -> None:
    """With the head of ``stock``: ours is new for every search."""
    ours = new_distilbert(checkpoint.weights, labels=("no", "yes"), **checkpoint.sizes).eval()
    ours.load_state_dict({name: tensor for name, tensor in stock.state_dict().items() if "classifier" in name},
                         strict=False)  # fmt: skip
    tokens = tokenize(tokenizer, TEXTS, LONGEST).tokens
    with torch.inference_mode():
        expected = [stock(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits for row in tokens]
        torch.testing.assert_close(ours(pack(list(tokens))), torch.cat(expected), atol=1e-6, rtol=1e-5)


def test_norms_named_as_in_tensorflow_are_read_everywhere(tmp_path: Path) -> None:
    """Of the blocks as well, where transformers 5 itself would begin with new ones."""
    folder = written(tmp_path)
    stock = transformers.DistilBertForSequenceClassification.from_pretrained(folder).eval()
    with_weights(folder, lambda weights: renamed(weights, ("LayerNorm", "layer_norm")))
    judge_logits(*open_checkpoint(str(folder), "main", LONGEST), stock)


def test_pickle_beside_safetensors_is_not_opened(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n")
    assert open_checkpoint(str(folder), "main", LONGEST)


def test_case_is_kept_where_the_tokenizer_keeps_it(tmp_path: Path) -> None:
    """That the comparison with stock above compares something: "GOOD" is not a word of the vocabulary, "good" is."""
    for lower, words in ((True, ["good", "cafe"]), (False, ["[UNK]", "[UNK]"])):
        folder = with_vocabulary_file(written(tmp_path / str(lower)), do_lower_case=lower)
        _, tokenizer = open_checkpoint(str(folder), "main", LONGEST)
        ids = tokenize(tokenizer, ["GOOD Café"], LONGEST).tokens[0]
        assert [tokenizer.backend.id_to_token(int(place)) for place in ids] == ["[CLS]", *words, "[SEP]"]


def only_pickle(folder: Path) -> Path:
    state = transformers.DistilBertModel.from_pretrained(folder).state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def bert(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=99)).save_pretrained(folder)
    return folder


def without(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def with_text(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder


def short_of_a_shard(folder: Path) -> Path:
    min(sharded(folder).glob("model-*.safetensors")).unlink()
    return folder


def with_nan(weights: Weights) -> Weights:
    weights["distilbert.transformer.layer.1.ffn.lin1.bias"][3] = torch.nan
    return weights


REFUSED: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "nothing there": (lambda folder: folder, ["no such folder", "OWNER/NAME"]),
    "pickle alone": (
        lambda folder: only_pickle(written(folder)),
        ["no model.safetensors", "pickle", "never loaded", "save_pretrained"],
    ),
    "a missing shard": (lambda folder: short_of_a_shard(written(folder)), ["model-00001-of"]),
    "a pointer of Git LFS": (
        lambda folder: with_text(written(folder), "model.safetensors", "version https://git-lfs.github.com/spec/v1"),
        ["not whole safetensors", "git lfs pull"],
    ),
    "bert": (bert, ["a bert model", "expected distilbert"]),
    "bert that says it is distilbert": (
        lambda folder: with_config(bert(folder), model_type="distilbert"),
        ["its weights have no", "not whole, or not of"],
    ),
    "another activation": (lambda folder: written(folder, activation="relu"), ["activation 'relu', expected gelu"]),
    "too few positions": (
        lambda folder: written(folder, max_position_embeddings=32),
        ["model.max_length 48", "32 positions", "32 or less"],
    ),
    "positions of another model": (
        lambda folder: with_config(written(folder), max_position_embeddings=128),
        ["position_embeddings.weight is (64, 32)", "config.json says (128, 32)"],
    ),
    "more layers than weights": (
        lambda folder: with_config(written(folder), n_layers=3), ["no transformer.layer.2", "missing: 16"],
    ),
    "no layers": (lambda folder: with_config(written(folder), n_layers=0), ["n_layers is 0"]),
    "heads that do not divide": (lambda folder: with_config(written(folder), n_heads=5), ["5 heads", "width of 32"]),
    "a size that is no number": (lambda folder: with_config(written(folder), n_heads="four"), ["n_heads", "'four'"]),
    "quantized": (
        lambda folder: with_config(
            written(folder), quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
        ),
        ["quantized"],
    ),
    "no config": (lambda folder: without(written(folder), "config.json"), ["config.json cannot be read"]),
    "a config that is no JSON": (lambda folder: with_text(written(folder), "config.json", "{"), ["not a valid JSON"]),
    "a config that is a list": (lambda folder: with_text(written(folder), "config.json", "[1]"), ["config.json"]),
    "NaN": (lambda folder: with_weights(written(folder), with_nan), ["layer.1.ffn.lin1.bias", "not finite"]),
    "no tokenizer": (
        lambda folder: without(written(folder), *TOKENIZER.files), ["no words", "tokenizer.json, or vocab.txt"],
    ),
    "a broken tokenizer": (
        lambda folder: with_text(written(folder), "tokenizer.json", "{}"), ["no usable tokenizer", "tokenizer.json"],
    ),
    "a tokenizer without [CLS]": (
        lambda folder: with_tokenizer(written(folder), post_processor=None), ["no [CLS]", "post_processor"],
    ),
    "a tokenizer of another model": (
        lambda folder: written(folder, vocab_size=TOKENIZER.vocabulary_size - 1),
        [f"ids up to {TOKENIZER.vocabulary_size - 1}", "resize_token_embeddings"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "parts"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_what_was_found(make: Callable[[Path], Path], parts: list[str], tmp_path: Path) -> None:
    folder = make(tmp_path / "checkpoint")
    with pytest.raises(ConfigError) as refused:
        open_checkpoint(str(folder), "main", LONGEST)
    message = str(refused.value)
    assert [part for part in [str(folder), "model.", *parts] if part not in message] == [], message
    assert "\n" not in message


def test_a_layer_less_in_the_config_than_in_the_weights_is_a_smaller_model(tmp_path: Path) -> None:
    """The usual way to begin with the first layers of a checkpoint, in stock transformers too."""
    folder = with_config(written(tmp_path / "two"), n_layers=1)
    checkpoint, tokenizer = open_checkpoint(str(folder), "main", LONGEST)
    assert checkpoint.sizes["layers"] == 1
    stock = transformers.DistilBertForSequenceClassification.from_pretrained(folder).eval()
    judge_logits(checkpoint, tokenizer, stock)


def test_a_checkpoint_of_the_hub_whose_weights_are_not_in_the_cache(tmp_path: Path) -> None:
    """Without a network: nothing is wrong with the repository, and pickle is not the reason."""
    cached = tmp_path / "hub" / "models--someone--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("a" * 40)
    snapshot = written(cached / "snapshots" / ("a" * 40))
    (snapshot / "model.safetensors").unlink()
    read = "from serve_app.inference.checkpoint import read_checkpoint; read_checkpoint('someone/model')"
    offline = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", read], env=offline, capture_output=True, text=True, timeout=120)
    assert "CheckpointError: its weights are not in the cache, and the hub cannot be reached" in ended.stderr
    assert "set HF_HOME" in ended.stderr
