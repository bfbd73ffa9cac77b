"""The small networks: averaging, convolutional, recurrent. They learn from nothing, on packed batches like DistilBERT.

None of them pads: the averaging network sums every text's rows of its tables in place, the convolution slides over
the packed row with a gap of a few zeros between texts, and the recurrent network takes all texts' first tokens, then
all second ones, and so on. A text's logits never depend on the texts beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from serve_app.inference.distilbert import row_filler
from serve_app.inference.packing import PackedBatch

_GAP = 0  # the id of [PAD] in every vocabulary that we learn, so of no word; its embedding stays zero


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What all small networks have. ``width``: of the embeddings, units; dropouts are probabilities."""

    family: ClassVar[str]
    labels: tuple[str, ...]
    vocabulary_size: int
    width: int
    dropout: float = 0.1
    classifier_dropout: float = 0.2


@dataclass(frozen=True, kw_only=True)
class AveragingConfig(NetworkConfig):
    """``ngrams``: longest run of tokens that is embedded, 1 for tokens alone; ``buckets``: embeddings they share."""

    family = "avgnet"
    ngrams: int = 2
    buckets: int = 2**17


@dataclass(frozen=True, kw_only=True)
class ConvolutionalConfig(NetworkConfig):
    """``filters`` of every window from ``narrowest_window`` to ``widest_window`` tokens."""

    family = "cnet"
    filters: int = 100
    narrowest_window: int = 3
    widest_window: int = 5


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(NetworkConfig):
    """``layers`` LSTM layers of ``hidden_width`` units in each direction."""

    family = "rnn"
    hidden_width: int = 128
    layers: int = 1


class SmallNetwork(nn.Module):
    """Embeddings, features of each text, and a linear classifier; subclasses say how features are made."""

    config: NetworkConfig

    def __init__(self, config: NetworkConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocabulary_size, config.width, padding_idx=_GAP)
        nn.init.normal_(self.embeddings.weight, std=0.1)
        with torch.no_grad():
            self.embeddings.weight[_GAP].zero_()
        self.classifier_dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(features, len(config.labels))

    @property
    def token_embeddings(self) -> nn.Embedding:
        """The table of embeddings that token ids are looked up in."""
        return self.embeddings

    def embedded(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """What the network looks up for one text, int64 [tokens]: of the tokens, [tokens, width], then, where it has
        them, of the n-grams for n = 2, 3, ..., [tokens - n + 1, width]."""
        return [self.embeddings.weight[ids]]

    def features(self, batch: PackedBatch) -> torch.Tensor:
        """Float [texts, features], in the order of the packed row."""
        raise NotImplementedError

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Logits float [texts, classes], in the order in which the texts were given to ``pack``."""
        logits = self.classifier(self.classifier_dropout(self.features(batch)))
        return torch.empty_like(logits).index_copy(0, batch.order, logits)


class AveragingNetwork(SmallNetwork):
    """The mean of the embeddings of a text's tokens and n-grams, after fastText (Joulin et al., 2016).

    Dropout drops whole tokens and n-grams.
    """

    config: AveragingConfig

    def __init__(self, config: AveragingConfig) -> None:
        super().__init__(config, config.width)
        if config.ngrams > 1:
            self.ngram_embeddings = nn.Embedding(config.buckets, config.width)
            nn.init.zeros_(self.ngram_embeddings.weight)

    def embedded(self, ids: torch.Tensor) -> list[torch.Tensor]:
        ngrams = self._ngrams(ids, torch.arange(len(ids), device=ids.device))
        return [self.embeddings.weight[ids], *(self.ngram_embeddings.weight[rows] for _, rows in ngrams)]

    def features(self, batch: PackedBatch) -> torch.Tensor:
        ids, positions = batch.input_ids[0], batch.position_ids[0]
        lengths = torch.diff(batch.cu_seqlens).long()
        total, count = self._sums(self.embeddings, ids, lengths), lengths
        for n, rows in self._ngrams(ids, positions):
            of_text = (lengths - (n - 1)).clamp(min=0)
            total = total + self._sums(self.ngram_embeddings, rows, of_text)
            count = count + of_text
        return total / count[:, None].to(total.dtype)

    def _ngrams(self, ids: torch.Tensor, positions: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """n from 2 up, and the rows of ``ngram_embeddings`` of all n-grams, text by text."""
        hashed = ids
        for n in range(2, self.config.ngrams + 1):
            # An n-gram stands at its last token; one that would begin before its text is left out.
            hashed = functional.pad(hashed, (1, 0))[:-1] * 1_000_003 + ids * (2 * n + 1)
            yield n, hashed[positions >= n - 1] % self.config.buckets

    def _sums(self, table: nn.Embedding, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The sum of ``table``'s ``rows`` of each text, [texts, width]; ``lengths``: rows of each text."""
        kept = None
        if self.training and self.config.dropout:
            kept = functional.dropout(
                torch.ones(len(rows), dtype=table.weight.dtype, device=rows.device), self.config.dropout
            )
        begins = torch.cumsum(lengths, 0) - lengths
        return functional.embedding_bag(
            rows, table.weight, begins, mode="sum", sparse=table.sparse, per_sample_weights=kept
        )


class ConvolutionalNetwork(SmallNetwork):
    """Filters over windows of tokens and the maximum of each over the text, after Kim (2014).

    Every token is the middle of one window per filter; places before and after a text are zero.
    """

    config: ConvolutionalConfig

    def __init__(self, config: ConvolutionalConfig) -> None:
        windows = range(config.narrowest_window, config.widest_window + 1)
        super().__init__(config, config.filters * len(windows))
        self.dropout = nn.Dropout(config.dropout)
        self.filters = nn.ModuleList(nn.Conv1d(config.width, config.filters, window) for window in windows)

    def features(self, batch: PackedBatch) -> torch.Tensor:
        ids, widest = batch.input_ids[0], self.config.widest_window
        before, gap = (widest - 1) // 2, widest // 2
        text = _text_of_each_token(batch)
        places = torch.arange(len(ids), device=ids.device) + gap * text
        filler = 0 if ids.is_cuda else row_filler(len(ids) + gap * (len(batch) - 1))
        size = before + len(ids) + gap * len(batch) + filler
        spread = ids.new_full((size,), _GAP).index_copy(0, before + places, ids)
        row = self.dropout(self.embeddings(spread))
        # One multiplication with all filters, narrow ones filled up with zeros, is 2 to 3 times as fast as Conv1d.
        windows = row.unfold(0, widest, 1).flatten(1)  # [places, width * widest]
        found = torch.relu(functional.linear(windows, *self._all_filters()))
        owner = text.new_full((len(found),), len(batch)).index_copy(0, places, text)  # of a gap: nobody
        best = found.new_zeros(len(batch) + 1, found.shape[1])
        return best.scatter_reduce(0, owner[:, None].expand_as(found), found, "amax")[:-1]

    def _all_filters(self) -> tuple[torch.Tensor, torch.Tensor]:
        widest, weights, biases = self.config.widest_window, [], []
        for filters in self.filters:
            assert isinstance(filters, nn.Conv1d)
            assert filters.bias is not None
            window = filters.weight.shape[2]
            before = (widest - 1) // 2 - (window - 1) // 2
            weights.append(functional.pad(filters.weight, (before, widest - window - before)))
            biases.append(filters.bias)
        return torch.cat(weights).flatten(1), torch.cat(biases)


class RecurrentNetwork(SmallNetwork):
    """A bidirectional LSTM and the maximum of each unit over the text."""

    config: RecurrentConfig

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config, 2 * config.hidden_width)
        self.dropout = nn.Dropout(config.dropout)
        self.lstm = nn.LSTM(config.width, config.hidden_width, config.layers, bidirectional=True,
                            dropout=config.dropout if config.layers > 1 else 0.0)  # fmt: skip

    def features(self, batch: PackedBatch) -> torch.Tensor:
        ids, positions = batch.input_ids[0], batch.position_ids[0]
        # Tokens by their position, longest text first within each: PackedSequence's own layout, without padding.
        texts_at = np.bincount(np.asarray(batch.lengths)).cumsum()
        texts_at = len(batch) - texts_at[:-1]
        begins = torch.from_numpy(texts_at.cumsum() - texts_at).to(ids.device)
        text = _text_of_each_token(batch)
        places = begins[positions] + (len(batch) - 1 - text)
        by_position = torch.empty_like(places).index_copy(0, places, torch.arange(len(ids), device=ids.device))
        embedded = self.dropout(self.embeddings(ids[by_position]))
        if not ids.is_cuda and (torch.is_grad_enabled() or not _has_lstm(embedded)):
            from_end = torch.diff(batch.cu_seqlens).long()[text] - 1 - positions
            mirror = (begins[from_end] + (len(batch) - 1 - text))[by_position]
            with torch.autocast(ids.device.type, enabled=False):  # matrices this small gain nothing from bf16
                found = self._unrolled(embedded.float(), texts_at.tolist(), mirror).to(embedded.dtype)
        else:
            found = self.lstm(PackedSequence(embedded, torch.from_numpy(texts_at)))[0].data
        best = found.new_full((len(batch), found.shape[1]), -1.0)  # an LSTM's outputs are above -1
        return best.scatter_reduce(0, text[by_position][:, None].expand_as(found), found, "amax")

    def _unrolled(self, row: torch.Tensor, texts_at: list[int], mirror: torch.Tensor) -> torch.Tensor:
        """What ``self.lstm`` gives for ``row``, [tokens, 2 * hidden width], both directions in one loop.

        The backward pass of a PackedSequence on a processor writes a gradient of the whole row at every position.
        ``mirror``: the token as far from its text's end as each token is from its begin.
        """
        for layer in range(self.config.layers):
            if layer:
                row = functional.dropout(row, self.config.dropout, self.training)
            # Of each direction: two weights, two biases.
            ways = [[part.float() for part in way] for way in self.lstm.all_weights[2 * layer : 2 * layer + 2]]
            inward, onward = (torch.stack([way[place] for way in ways]).mT for place in (0, 1))
            # Added before they are stacked: the other way round both biases would get one gradient in one memory.
            bias = torch.stack([way[2] + way[3] for way in ways])[:, None]
            both = torch.baddbmm(bias, torch.stack([row, row[mirror]]), inward)
            hidden = cell = both.new_zeros(2, texts_at[0], self.config.hidden_width)
            outputs = []
            for inputs in both.split(texts_at, dim=1):  # the texts that reach this position are always the first ones
                texts = inputs.shape[1]
                gates = torch.baddbmm(inputs, hidden[:, :texts], onward)
                enter, forget, new, leave = gates.chunk(4, dim=-1)
                cell = torch.sigmoid(forget) * cell[:, :texts] + torch.sigmoid(enter) * torch.tanh(new)
                hidden = torch.sigmoid(leave) * torch.tanh(cell)
                outputs.append(hidden)
            forwards, backwards = torch.cat(outputs, 1)
            row = torch.cat([forwards, backwards[mirror]], 1)
        return row


def _has_lstm(row: torch.Tensor) -> bool:
    """Whether PyTorch has an LSTM, on a processor, in the type that ``row`` is computed in: where there is no bf16,
    oneDNN's under autocast to it ends with an error."""
    computed_in = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else row.dtype
    return (
        computed_in != torch.bfloat16
        or not torch.backends.mkldnn.is_available()
        or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _text_of_each_token(batch: PackedBatch) -> torch.Tensor:
    """int64 [tokens]: the place in the packed row of the text that each token belongs to."""
    lengths = torch.diff(batch.cu_seqlens).long()
    return torch.repeat_interleave(lengths, output_size=batch.input_ids.shape[1])


NETWORKS: dict[str, tuple[type[NetworkConfig], Callable[[Any], SmallNetwork]]] = {
    "avgnet": (AveragingConfig, AveragingNetwork),
    "cnet": (ConvolutionalConfig, ConvolutionalNetwork),
    "rnn": (RecurrentConfig, RecurrentNetwork),
}
