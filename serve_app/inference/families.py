"""The models. Every model is a module that takes a packed batch and returns logits [texts, classes]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from serve_app.inference.attention import PACKED_ATTENTION, plan_attention
from serve_app.inference.packing import PackedBatch


class PackedDistilBert(nn.Module):
    """The stock DistilBERT classifier with its stock weights, run on packed batches."""

    def __init__(self, stock: DistilBertForSequenceClassification) -> None:
        super().__init__()
        self.stock = stock
        self.stock.set_attn_implementation(PACKED_ATTENTION)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits float [texts, classes], in the order in which the texts were given to ``pack``."""
        encoder, plan = self.stock.distilbert, plan_attention(batch)
        hidden = encoder.embeddings(batch.input_ids, position_ids=batch.position_ids)
        # Straight to the layers: the encoder's own forward only adds the padding mask, which packing has no use for.
        hidden = encoder.transformer(hidden_states=hidden, attention_mask=None, plan=plan).last_hidden_state
        first_tokens = hidden[0].index_select(0, batch.cu_seqlens[:-1])
        pooled = self.stock.dropout(torch.relu(self.stock.pre_classifier(first_tokens)))
        logits = self.stock.classifier(pooled)
        return torch.empty_like(logits).index_copy(0, batch.order, logits)


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
