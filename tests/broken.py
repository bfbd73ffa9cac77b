"""Ways in which the saved-model folder of a version can be broken, and what is then said of it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from serve_app.inference.tokenizing import learn_wordpiece
from tests.tiny import WORDS, write_tiny_model

FILES = (
    "trialgate.json",
    "model.safetensors",
    "sample.safetensors",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
Spoil = Callable[[Path], None]


def without(name: str) -> Spoil:
    """Without one of its files."""
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    """Its weights end early, as after a full disk."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def changed_weights(folder: Path) -> None:
    """Weights that answer otherwise than when the sample was taken."""
    _change_weights(folder, "classifier.weight", lambda weights: weights.neg_())


def nan_logits(folder: Path) -> None:
    """Every answer is NaN."""
    _change_weights(folder, "classifier.bias", lambda weights: weights.fill_(torch.nan))


def nan_for_one_word(folder: Path) -> None:
    """Only answers to texts with a word that the sample does not have are NaN."""
    name = "distilbert.embeddings.word_embeddings.weight"
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    _change_weights(folder, name, lambda weights: weights[vocabulary["hated"]].fill_(torch.nan))


def pickled(folder: Path) -> None:
    """Its weights are where torch.save puts them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


class Harmful:
    """Raises when it is unpickled, where the code of a stranger would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle was opened')",)


def pickle_as(name: str) -> Spoil:
    """A pickle under a name of safetensors."""
    return lambda folder: _write(folder / name, pickle.dumps({"classifier.bias": Harmful()}))


def config_of_other_labels(folder: Path) -> None:
    """Its config has the labels the other way round."""
    _change_json(folder / "config.json", id2label={"0": "positive", "1": "negative"})


def labels_of_other_sample(folder: Path) -> None:
    """Its sample is of a model with three labels."""
    other = write_tiny_model(folder.with_name(f"{folder.name}-three"), ("bad", "fair", "good"))
    shutil.copyfile(other / "sample.safetensors", folder / "sample.safetensors")
    shutil.rmtree(other)


def vocabulary(words: str, size: int) -> Spoil:
    """A tokenizer that was learnt from other words."""
    tokenizer = learn_wordpiece([words] * 4, size, 64)
    return lambda folder: _write(folder / "tokenizer.json", tokenizer.files["tokenizer.json"])


def description(**values: Any) -> Spoil:
    """Other values in trialgate.json."""
    return lambda folder: _change_json(folder / "trialgate.json", **values)


def no_json(name: str) -> Spoil:
    """A file with something else in it."""
    return lambda folder: _write(folder / name, b"\xff<html>502 Bad Gateway</html>")


BROKEN: dict[str, tuple[Spoil, str]] = {
    **{f"no {name}": (without(name), name) for name in FILES},
    **{f"garbage in {name}": (no_json(name), name) for name in FILES if name != "tokenizer_config.json"},
    "weights cut short": (cut, "model.safetensors does not hold this model's weights"),
    "other weights": (changed_weights, "probabilities of the folder's sample are off by"),
    "NaN logits": (nan_logits, "not finite"),
    "NaN for one word": (nan_for_one_word, "word_embeddings.weight has values that are not finite"),
    "pickled weights": (pickled, "pytorch_model.bin is pickle, which is never loaded"),
    "pickle named safetensors": (pickle_as("model.safetensors"), "model.safetensors does not hold"),
    "pickled sample": (pickle_as("sample.safetensors"), "sample.safetensors cannot be read"),
    "labels that contradict the config": (config_of_other_labels, "they must be the same, in the same order"),
    "labels other than the sample's": (labels_of_other_sample, "the sample has 3 classes, the model 2"),
    "one label twice": (description(labels=["positive", "positive"]), "values that cannot be"),
    "every answer alike": (description(temperature=float("inf")), "values that cannot be"),
    "longer texts than positions": (description(max_length=65), "the model has 64 positions"),
    "format to come": (description(format_version=2), "format version 2"),
    "tokenizer of other words": (vocabulary(WORDS[::-1], 200), "not the tokenizer that the model was trained with"),
    "tokenizer of more words, unmarked": (
        lambda folder: (description(tokenizer_digest=None)(folder), vocabulary(f"{WORDS} {WORDS[::-1]}", 400)(folder)),
        "they are not of the same model",
    ),
}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _change_json(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | values), encoding="utf-8")


def _change_weights(folder: Path, name: str, change: Callable[[torch.Tensor], Any]) -> None:
    weights = load_file(folder / "model.safetensors", backend="pread")
    change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
