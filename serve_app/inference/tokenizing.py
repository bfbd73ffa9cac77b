"""Texts to token ids: loading a tokenizer, learning one, and cutting texts to the model's length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from serve_app.inference.packing import TokenizedTexts

_SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                   "mask_token": "[MASK]"}  # fmt: skip


@dataclass(frozen=True)
class Tokenized:
    """``tokens`` of each text with [CLS] and [SEP]; ``truncated`` bool [texts]: longer than the limit."""

    tokens: TokenizedTexts
    truncated: np.ndarray


def load_tokenizer(location: str | Path, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a folder or hub id."""
    tokenizer = AutoTokenizer.from_pretrained(str(location), revision=revision, use_fast=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"{location} has no fast tokenizer (tokenizer.json)")
    return tokenizer


def tokenize(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], max_length: int, truncate: bool = True
) -> Tokenized:
    """Token ids of ``texts``; those over ``max_length`` tokens are cut before the final [SEP] if ``truncate``."""
    backend = tokenizer.backend_tokenizer
    rows: list[Sequence[int]] = []
    truncated = np.zeros(len(texts), dtype=bool)
    for place, encoding in enumerate(backend.encode_batch_fast(list(texts), add_special_tokens=True)):
        ids = encoding.ids
        if len(ids) > max_length:
            truncated[place] = True
            if truncate:
                ids = ids[: max_length - 1] + ids[-1:]
        rows.append(ids)
    return Tokenized(TokenizedTexts.from_lists(rows), truncated)


def learn_wordpiece(texts: Iterable[str], vocabulary_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer in DistilBERT's layout, learnt from ``texts``.

    The vocabulary has at most ``vocabulary_size`` entries, fewer for small data; the same texts give the same one.
    """
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    core.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    core.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=list(_SPECIAL_TOKENS.values()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    separator = ("[SEP]", core.token_to_id("[SEP]"))
    core.post_processor = tokenizers.processors.BertProcessing(separator, ("[CLS]", core.token_to_id("[CLS]")))
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=max_length, **_SPECIAL_TOKENS)
