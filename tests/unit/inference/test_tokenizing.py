"""Texts to token ids."""

from __future__ import annotations

from serve_app.inference.tokenizing import learn_wordpiece, load_tokenizer, tokenize

TEXTS = ["good", "a good film", "not a good film at all, and far too long for what it has to say"]


def test_padding_and_truncation_stored_with_a_checkpoint_are_switched_off(tmp_path):
    tokenizer = learn_wordpiece(TEXTS * 2, 200, 64)
    plain = tokenize(tokenizer, TEXTS, 64).tokens
    # As published checkpoints often have it: everything padded, and cut at a length of their own.
    tokenizer.backend_tokenizer.enable_padding(length=32)
    tokenizer.backend_tokenizer.enable_truncation(max_length=8)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    again = tokenize(loaded, TEXTS, 64)
    assert again.tokens.ids.tolist() == plain.ids.tolist()
    assert again.tokens.offsets.tolist() == plain.offsets.tolist()
    assert tokenize(loaded, TEXTS, 10).truncated.tolist() == [False, False, True]
