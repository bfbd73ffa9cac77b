"""The model families. Every model is a module that takes a packed batch and returns logits [texts, classes].

A saved DistilBERT has transformers' own ``config.json`` (``model_type`` distilbert) and names of weights, so that stock
transformers opens it too. The others have ``family`` there, which transformers does not take for a model of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from serve_app.inference.distilbert import PackedDistilBert
from serve_app.inference.networks import NETWORKS, SmallNetwork

PackedModel = PackedDistilBert | SmallNetwork
FAMILIES = ("distilbert", *NETWORKS)


def label_maps(labels: Sequence[str]) -> dict[str, Any]:
    """transformers' two label mappings for class names in the order of their ids."""
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def new_distilbert(
    *,
    layers: int,
    width: int,
    heads: int,
    feed_forward_width: int,
    vocabulary_size: int,
    max_length: int,
    labels: Sequence[str],
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    classifier_dropout: float = 0.2,
) -> PackedDistilBert:
    """A DistilBERT with random weights from torch's global generator."""
    config = DistilBertConfig(
        vocab_size=vocabulary_size,
        max_position_embeddings=max_length,
        n_layers=layers,
        n_heads=heads,
        dim=width,
        hidden_dim=feed_forward_width,
        dropout=dropout,
        attention_dropout=attention_dropout,
        seq_classif_dropout=classifier_dropout,
        **label_maps(labels),
    )
    return PackedDistilBert(DistilBertForSequenceClassification(config))


def pretrained_distilbert(
    checkpoint: str,
    *,
    revision: str,
    labels: Sequence[str],
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    classifier_dropout: float = 0.2,
) -> PackedDistilBert:
    """DistilBERT weights from a hub id or folder (safetensors only), with a new classifier for ``labels``.

    Raises OSError when there is no such checkpoint and ValueError when it is of another family.
    """
    config = DistilBertConfig.from_pretrained(checkpoint, revision=revision)
    if config.model_type != "distilbert":
        raise ValueError(f"checkpoint '{checkpoint}' is of type '{config.model_type}', expected distilbert")
    for name, value in {
        "dropout": dropout,
        "attention_dropout": attention_dropout,
        "seq_classif_dropout": classifier_dropout,
        **label_maps(labels),
    }.items():
        setattr(config, name, value)
    stock = DistilBertForSequenceClassification.from_pretrained(
        checkpoint,
        revision=revision,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        ignore_mismatched_sizes=True,
    )
    return PackedDistilBert(stock)


def new_network(family: str, *, labels: Sequence[str], **sizes: Any) -> SmallNetwork:
    """A small network with random weights from torch's global generator; ``sizes``: the fields of its config."""
    config, network = NETWORKS[family]
    return network(config(labels=tuple(labels), **sizes))


def labels_of(model: PackedModel) -> tuple[str, ...]:
    """Class names in the order of their ids."""
    if isinstance(model, SmallNetwork):
        return model.config.labels
    return tuple(name for _, name in sorted((model.stock.config.id2label or {}).items()))


def stored_weights(model: PackedModel) -> dict[str, torch.Tensor]:
    """The weights under the names that they have in a saved model."""
    return (model if isinstance(model, SmallNetwork) else model.stock).state_dict()


def write_config(model: PackedModel, folder: Path) -> None:
    """Writes ``config.json``."""
    if not isinstance(model, SmallNetwork):
        model.stock.config.architectures = [type(model.stock).__name__]
        model.stock.config.save_pretrained(folder)
        return
    sizes = asdict(model.config)
    content = {"family": model.config.family, **label_maps(sizes.pop("labels")), **sizes}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_packed_model(folder: Path, weights: Mapping[str, torch.Tensor]) -> PackedModel:
    """The model that ``config.json`` describes, with ``weights`` under the names of ``stored_weights``, as fp32.

    Raises ValueError for a config that describes none, RuntimeError for weights of another model.
    """
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    found = content if isinstance(content, dict) else {}
    family = found.pop("family", found.get("model_type"))
    if family not in FAMILIES:
        raise ValueError(f"{path} is of the family {family!r}, expected one of {', '.join(FAMILIES)}")
    module: DistilBertForSequenceClassification | SmallNetwork
    with torch.device("meta"):  # no time spent on random weights that are replaced at once
        if family == "distilbert":
            module = DistilBertForSequenceClassification(DistilBertConfig.from_pretrained(folder))
        else:
            module = _empty_network(family, content, path)
    module.load_state_dict(weights, strict=True, assign=True)
    module.float()
    if isinstance(module, SmallNetwork):
        return module
    positions = torch.arange(module.config.max_position_embeddings)[None]
    module.distilbert.embeddings.register_buffer("position_ids", positions, persistent=False)
    return PackedDistilBert(module)


def _empty_network(family: str, content: dict[str, Any], path: Path) -> SmallNetwork:
    names, _ = content.pop("id2label", {}), content.pop("label2id", None)
    try:
        return new_network(family, labels=[names[str(place)] for place in range(len(names))], **content)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a model of family '{family}': {error}") from None
