"""Texts to token ids: reading a tokenizer, learning one, and cutting texts to the model's length."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers

from serve_app.inference.token_ids import TokenizedTexts

_BACKEND_FILE = "tokenizer.json"
TOKENIZER_FILES = (_BACKEND_FILE, "tokenizer_config.json")
_SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
                   "mask_token": "[MASK]"}  # fmt: skip
_MOST_CHARACTERS = 1000  # rarer ones become [UNK]


@dataclass(frozen=True)
class Tokenized:
    """``tokens`` of each text with [CLS] and [SEP]; ``truncated`` bool [texts]: longer than the limit."""

    tokens: TokenizedTexts
    truncated: np.ndarray


@dataclass(frozen=True)
class LocatedTokens:
    """The tokens of one text and where they stand in it.

    ``ids``: int32 [tokens], with [CLS] and [SEP]. ``spans``: int64 [tokens, 2], characters of the text (Unicode code
    points), begin and end. ``special``: bool [tokens], true for [CLS] and [SEP]. ``words``: first token and the one
    after the last of each word, in order. ``truncated``: the text had more tokens than the limit.
    """

    ids: np.ndarray
    spans: np.ndarray
    special: np.ndarray
    words: tuple[tuple[int, int], ...]
    truncated: bool


@dataclass(frozen=True)
class TextTokenizer:
    """``backend`` does the work; ``files``: what a saved model keeps of it, name to content, as transformers has it."""

    backend: tokenizers.Tokenizer
    files: Mapping[str, bytes]

    @property
    def vocabulary_size(self) -> int:
        """How many embeddings its ids need: one more than the largest, special tokens included."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def read_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer of a folder with TOKENIZER_FILES. Raises ValueError for a ``tokenizer.json`` that is none.

    Any padding or truncation stored with it is switched off: padding belongs to batches, of which there are none here,
    and ``tokenize`` must see how long a text is.
    """
    files = {name: (Path(folder) / name).read_bytes() for name in TOKENIZER_FILES}
    try:
        backend = tokenizers.Tokenizer.from_buffer(files[_BACKEND_FILE])
    except Exception as error:  # noqa: BLE001 - the library raises this very class
        raise ValueError(f"{Path(folder) / _BACKEND_FILE} is no tokenizer: {error}") from None
    backend.no_padding()
    backend.no_truncation()
    return TextTokenizer(backend, files)


def tokenize(tokenizer: TextTokenizer, texts: Sequence[str], max_length: int, truncate: bool = True) -> Tokenized:
    """Token ids of ``texts``; those over ``max_length`` tokens are cut before the final [SEP] if ``truncate``."""
    rows: list[Sequence[int]] = []
    truncated = np.zeros(len(texts), dtype=bool)
    for place, encoding in enumerate(tokenizer.backend.encode_batch_fast(list(texts), add_special_tokens=True)):
        ids = encoding.ids
        if len(ids) > max_length:
            truncated[place] = True
            if truncate:
                ids = ids[: max_length - 1] + ids[-1:]
        rows.append(ids)
    return Tokenized(TokenizedTexts.from_lists(rows), truncated)


def locate(tokenizer: TextTokenizer, text: str, max_length: int) -> LocatedTokens:
    """The tokens of ``text``, cut to ``max_length`` as ``tokenize`` cuts them, with their places in it."""
    encoding = tokenizer.backend.encode(text, add_special_tokens=True)
    kept = np.arange(len(encoding.ids))
    if len(kept) > max_length:
        kept = np.append(kept[: max_length - 1], kept[-1])
    special = np.asarray(encoding.special_tokens_mask, dtype=bool)[kept]
    word_of = [encoding.word_ids[place] for place in kept]
    words: list[tuple[int, int]] = []
    for place in np.flatnonzero(~special).tolist():
        if words and words[-1][1] == place and word_of[place] is not None and word_of[place] == word_of[place - 1]:
            words[-1] = (words[-1][0], place + 1)
        else:
            words.append((place, place + 1))
    return LocatedTokens(
        ids=np.asarray(encoding.ids, dtype=np.int32)[kept],
        spans=np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)[kept],
        special=special,
        words=tuple(words),
        truncated=len(encoding.ids) > max_length,
    )


def learn_wordpiece(texts: Sequence[str], vocabulary_size: int, max_length: int) -> TextTokenizer:
    """A lower-casing WordPiece tokenizer in DistilBERT's layout, learnt from ``texts``.

    The vocabulary has at most ``vocabulary_size`` entries, fewer for small data; the same texts give the same one.
    """
    vocabulary = _learn_vocabulary(texts, vocabulary_size)
    core = _core(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    first, separator = (("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"]))
    core.post_processor = tokenizers.processors.BertProcessing(separator, first)
    core.add_special_tokens(list(_SPECIAL_TOKENS.values()))
    stock = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, **_SPECIAL_TOKENS}
    contents = core.to_str(pretty=True), json.dumps(stock, indent=2) + "\n"
    return TextTokenizer(core, dict(zip(TOKENIZER_FILES, (content.encode() for content in contents), strict=True)))


def _core(model: tokenizers.models.WordPiece) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(model)
    core.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    core.decoder = tokenizers.decoders.WordPiece()
    return core


def _learn_vocabulary(texts: Sequence[str], size: int) -> dict[str, int]:
    """Entry to id. The library's trainer breaks ties between merges by ids that it deals to the inner characters in
    the order of a hash table, so two runs differ; naming those characters up front fixes their ids, and the result."""
    learner = _core(tokenizers.models.WordPiece(unk_token="[UNK]"))
    counts = Counter(chain.from_iterable(learner.normalizer.normalize_str(text) for text in texts))
    ranked = sorted((character for character in counts if not character.isspace()), key=lambda c: (-counts[c], c))
    characters = sorted(ranked[:_MOST_CHARACTERS])
    specials = list(_SPECIAL_TOKENS.values())
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[*specials, *(f"##{character}" for character in characters)],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    words = [*specials, *sorted(set(learner.get_vocab()) - set(specials))]
    return {word: place for place, word in enumerate(words)}
