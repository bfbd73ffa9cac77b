"""Texts to token ids."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import transformers

from serve_app.inference.checkpoint import import_tokenizer
from serve_app.inference.tokenizing import learn_wordpiece, read_tokenizer, tokenize

TEXTS = ["good", "a good film", "not a good film at all, and far too long for what it has to say"]


def test_padding_and_truncation_stored_with_a_checkpoint_are_switched_off(tmp_path: Path) -> None:
    tokenizer = learn_wordpiece(TEXTS * 2, 200, 64)
    plain = tokenize(tokenizer, TEXTS, 64).tokens
    # As published checkpoints often have it: everything padded, and cut at a length of their own.
    stored = tokenizers.Tokenizer.from_buffer(tokenizer.files["tokenizer.json"])
    stored.enable_padding(length=32)
    stored.enable_truncation(max_length=8)
    stored.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_bytes(tokenizer.files["tokenizer_config.json"])
    for loaded in (read_tokenizer(tmp_path), import_tokenizer(str(tmp_path))):
        again = tokenize(loaded, TEXTS, 64)
        assert again.tokens.ids.tolist() == plain.ids.tolist()
        assert again.tokens.offsets.tolist() == plain.offsets.tolist()
        assert tokenize(loaded, TEXTS, 10).truncated.tolist() == [False, False, True]


def test_stock_transformers_reads_a_learnt_one_the_same_way(tmp_path: Path) -> None:
    tokenizer = learn_wordpiece(TEXTS * 2, 200, 64)
    for name, content in tokenizer.files.items():
        (tmp_path / name).write_bytes(content)
    stock = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [stock(text)["input_ids"] for text in TEXTS] == [
        ids.tolist() for ids in tokenize(tokenizer, TEXTS, 64).tokens
    ]
    assert (stock.pad_token, stock.model_max_length, len(stock)) == ("[PAD]", 64, tokenizer.vocabulary_size)


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        read_tokenizer(tmp_path)
