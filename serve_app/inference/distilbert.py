"""DistilBERT on packed batches: the stock transformers model with its stock weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers import DistilBertForSequenceClassification

from serve_app.inference.attention import PACKED_ATTENTION, plan_attention
from serve_app.inference.dropout import with_fast_dropout
from serve_app.inference.packing import PackedBatch


class PackedDistilBert(nn.Module):
    """The stock DistilBERT classifier with its stock weights, run on packed batches."""

    def __init__(self, stock: DistilBertForSequenceClassification) -> None:
        super().__init__()
        self.stock = stock
        self.stock.set_attn_implementation(PACKED_ATTENTION)
        with_fast_dropout(self.stock)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits float [texts, classes], in the order in which the texts were given to ``pack``."""
        encoder, plan = self.stock.distilbert, plan_attention(batch)
        filled = [
            functional.pad(row, (0, row_filler(row.shape[1]))) if row.device.type == "cpu" else row
            for row in (batch.input_ids, batch.position_ids)
        ]
        hidden = encoder.embeddings(filled[0], position_ids=filled[1])
        if torch.is_autocast_enabled(hidden.device.type):
            # Else the residual stream would stay in fp32, and every linear layer would copy its input.
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        # Straight to the layers: the encoder's own forward only adds the padding mask, which packing has no use for.
        hidden = encoder.transformer(hidden_states=hidden, attention_mask=None, plan=plan).last_hidden_state
        first_tokens = hidden[0].index_select(0, batch.cu_seqlens[:-1])
        pooled = self.stock.dropout(torch.relu(self.stock.pre_classifier(first_tokens)))
        logits = self.stock.classifier(pooled)
        return torch.empty_like(logits).index_copy(0, batch.order, logits)


def row_filler(tokens: int) -> int:
    """Tokens of no text that are put behind a row on a processor, so that rows have few different lengths.

    oneDNN compiles a kernel for every new shape of a matrix product, 1 to 3 ms and megabytes each, and no two batches
    would have the same. At most a sixteenth is added, 2 to 3 % on average, and at most 15 to a short row.
    """
    return -tokens % max(16, 1 << max(0, tokens.bit_length() - 5))
