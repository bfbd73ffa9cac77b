"""The models. Every model is a module that takes a packed batch and returns logits [texts, classes]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from serve_app.inference.distilbert import PackedDistilBert


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
