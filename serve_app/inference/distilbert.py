"""DistilBERT (Sanh et al., 2019) on packed batches, with the names of weights and settings that transformers has.

Written out here because importing transformers' own takes 4 s of processor time and 250 MB in every trial and every
replica, more than all the rest of its start. The tests compare both, forwards and backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from serve_app.inference.attention import (
    AttentionPlan,
    first_token_attention,
    packed_attention,
    plan_attention,
    spares_keys,
)
from serve_app.inference.dropout import Dropout
from serve_app.inference.packing import PackedBatch

_EPSILON = 1e-12  # of the norms, as DistilBERT was trained
_PAD = 0
_SPREAD = 0.02  # standard deviation of new weights
# Our names and those of transformers' config.json: of what the weights decide, and of the rest.
_STOCK_SIZES = {
    "vocabulary_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "layers": "n_layers",
    "width": "dim",
    "heads": "n_heads",
    "feed_forward_width": "hidden_dim",
}
_STOCK_NAMES = _STOCK_SIZES | {
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
}
SIZES = tuple(_STOCK_SIZES)


@dataclass(frozen=True, kw_only=True)
class DistilBertConfig:
    """``max_length``: positions, tokens; ``width`` and ``feed_forward_width``: units; dropouts are probabilities.

    Raises ValueError for a size below 1, and when ``heads`` does not divide ``width``.
    """

    family: ClassVar[str] = "distilbert"
    labels: tuple[str, ...]
    vocabulary_size: int
    max_length: int
    layers: int
    width: int
    heads: int
    feed_forward_width: int
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.2

    def __post_init__(self) -> None:
        for ours, theirs in _STOCK_SIZES.items():
            if getattr(self, ours) < 1:
                raise ValueError(f"{theirs} is {getattr(self, ours)}, expected at least 1")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")

    @classmethod
    def from_stock(cls, content: Mapping[str, Any], labels: tuple[str, ...]) -> DistilBertConfig:
        """From the content of transformers' ``config.json``. Raises ValueError for what is not supported."""
        activation = content.get("activation", "gelu")
        if activation != "gelu":
            raise ValueError(f"it has the activation '{activation}', expected gelu: no other is computed here")
        missing = [name for name in _STOCK_NAMES.values() if name not in content]
        if missing:
            raise ValueError(f"config.json has no {', '.join(missing)}")
        return cls(labels=labels, **{ours: content[theirs] for ours, theirs in _STOCK_NAMES.items()})

    def as_stock(self) -> dict[str, Any]:
        """The content of transformers' ``config.json``, but for the labels."""
        return {
            "architectures": ["DistilBertForSequenceClassification"],
            "model_type": "distilbert",
            "activation": "gelu",
            "pad_token_id": _PAD,
            "initializer_range": _SPREAD,
            **{theirs: getattr(self, ours) for ours, theirs in _STOCK_NAMES.items()},
        }


class Table(nn.Embedding):
    """A table of embeddings whose weights are not set."""

    def reset_parameters(self) -> None:
        """Nothing: numbers drawn on the meta device would load PyTorch's compiler, 1 s of the processor and 72 MB."""


class Embeddings(nn.Module):
    """Of tokens and of their positions."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.word_embeddings = Table(config.vocabulary_size, config.width, padding_idx=_PAD)
        self.position_embeddings = Table(config.max_length, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=_EPSILON)
        self.dropout = Dropout(config.dropout)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Float [tokens, width] of int64 [tokens]."""
        return self.dropout(self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings(positions)))


class Attention(nn.Module):
    """Of the tokens of each text to one another, with several heads."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.q_lin = nn.Linear(config.width, config.width)
        self.k_lin = nn.Linear(config.width, config.width)
        self.v_lin = nn.Linear(config.width, config.width)
        self.out_lin = nn.Linear(config.width, config.width)

    def forward(self, asking: torch.Tensor, hidden: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Float, the shape of ``asking``: all tokens, or the first of each text; ``hidden``: all, [tokens, width]."""
        dropout = self.dropout if self.training else 0.0
        query, first_tokens = self.q_lin(asking).unflatten(1, (self.heads, -1)), asking is not hidden
        if first_tokens and spares_keys(plan, hidden.dtype):
            found = first_token_attention(query, hidden, self.k_lin.weight, self.v_lin.weight, plan, dropout)
            # DDP waits for a gradient of every weight: 0 is that of the keys' bias.
            bias = self.v_lin.bias + 0 * self.k_lin.bias if torch.is_grad_enabled() else self.v_lin.bias
            return self.out_lin(found.flatten(1) + bias)
        key, value = (linear(hidden).unflatten(1, (self.heads, -1)) for linear in (self.k_lin, self.v_lin))
        found = packed_attention(query, key, value, plan, dropout, first_tokens=first_tokens)
        return self.out_lin(found.flatten(1))


class FeedForward(nn.Module):
    """The two linear layers of a block."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.width, config.feed_forward_width)
        self.lin2 = nn.Linear(config.feed_forward_width, config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float [tokens, width] of the same."""
        return self.dropout(self.lin2(functional.gelu(self.lin1(hidden))))


class Block(nn.Module):
    """One layer of the encoder: attention and feed-forward, each added to its input and normed."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.sa_layer_norm = nn.LayerNorm(config.width, eps=_EPSILON)
        self.ffn = FeedForward(config)
        self.output_layer_norm = nn.LayerNorm(config.width, eps=_EPSILON)

    def forward(self, hidden: torch.Tensor, plan: AttentionPlan, first_tokens: bool = False) -> torch.Tensor:
        """Float [tokens, width] of the same or, with ``first_tokens``, [texts, width], the first of each text alone."""
        asking = hidden.index_select(0, plan.cu_seqlens[:-1]) if first_tokens else hidden
        found = self.sa_layer_norm(self.attention(asking, hidden, plan) + asking)
        return self.output_layer_norm(self.ffn(found) + found)


class Encoder(nn.Module):
    """All blocks. Only the first token of each text is read from the last, so only that one is computed there."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, hidden: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        """Float [texts, width], the first token of each, of [tokens, width]."""
        for place, block in enumerate(self.layer, start=1):
            hidden = block(hidden, plan, first_tokens=place == len(self.layer))
        return hidden


class PackedDistilBert(nn.Module):
    """The DistilBERT classifier: embeddings, encoder, and two linear layers on the first token of each text.

    Its weights are not set: see ``fill`` and ``load_state_dict``. ``compiles_products``: whether its linear layers are
    oneDNN's on a processor though it is in fp32, as in int8; see ``row_filler``.
    """

    compiles_products = False

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.config = config
        self.distilbert = nn.ModuleDict({"embeddings": Embeddings(config), "transformer": Encoder(config)})
        self.pre_classifier = nn.Linear(config.width, config.width)
        self.classifier = nn.Linear(config.width, len(config.labels))
        self.dropout = Dropout(config.classifier_dropout)

    @property
    def token_embeddings(self) -> nn.Embedding:
        """The table of embeddings that token ids are looked up in."""
        table = self.distilbert["embeddings"].word_embeddings
        assert isinstance(table, nn.Embedding)
        return table

    def embedded(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """What the model looks up for one text, int64 [tokens]: only the tokens, [[tokens, width]]."""
        return [self.token_embeddings.weight[ids]]

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits float [texts, classes], in the order in which the texts were given to ``pack``."""
        ids, positions = batch.input_ids[0], batch.position_ids[0]
        device = ids.device.type
        dtype = self.token_embeddings.weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if device == "cpu":
            compiled = self.compiles_products or dtype != torch.float32
            filler = row_filler(len(ids), compiled=compiled)
            ids, positions = (functional.pad(row, (0, filler)) for row in (ids, positions))
        # Under autocast the residual stream would stay in fp32, and every linear layer would copy its input.
        hidden = self.distilbert["embeddings"](ids, positions).to(dtype)
        dropout = self.config.attention_dropout if self.training else 0.0
        plan = plan_attention(batch, hidden.dtype, dropout)
        first_tokens = self.distilbert["transformer"](hidden, plan)
        logits = self.classifier(self.dropout(torch.relu(self.pre_classifier(first_tokens))))
        return torch.empty_like(logits).index_copy(0, batch.order, logits)

    @torch.no_grad()
    def fill(self, weights: Mapping[str, np.ndarray]) -> None:
        """Copies ``weights``, by name, and draws the others from torch's global generator, as DistilBERT was begun."""
        for name, parameter in self.named_parameters():
            if name in weights:
                parameter.numpy()[...] = weights[name]  # may be read-only, in Ray's object store
            elif name.endswith(".bias"):
                parameter.zero_()
            elif parameter.ndim == 1:  # of a norm
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=_SPREAD)
                if name.endswith("word_embeddings.weight"):
                    parameter[_PAD].zero_()


def row_filler(tokens: int, *, compiled: bool = True) -> int:
    """Tokens of no text that are put behind a row on a processor, so that rows have few different lengths.

    oneDNN compiles a kernel for every new shape of a matrix product, 1 to 3 ms and megabytes each, and no two batches
    would have the same. At most a sixteenth is added, 2 to 3 % on average, and at most 15 to a short row. Products in
    fp32 are not ``compiled``, but GELU is, and every new size of a matrix leaves a hole in the memory: 600 batches of 1
    to 18 sentences took 285 MB without filler, 53 with at most 3 added to a short row, 48 with 15. A lone sentence took
    0.91 of the time with 3 (one core of an AMD EPYC with AVX2, DistilBERT-base).
    """
    return -tokens % max(16 if compiled else 4, 1 << max(0, tokens.bit_length() - 5))
