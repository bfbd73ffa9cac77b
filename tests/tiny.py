"""Tiny real models for tests: complete saved-model folders, made in well under a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serve_app.inference.distilbert import PackedDistilBert
from serve_app.inference.families import PackedModel, new_distilbert, new_network
from serve_app.inference.metrics import F1Definition
from serve_app.inference.packing import pack
from serve_app.inference.saved_model import ModelInfo, write_model_folder
from serve_app.inference.token_ids import TokenizedTexts
from serve_app.inference.tokenizing import learn_wordpiece, tokenize

WORDS = (
    "the a movie film book was is plot acting and but not very good bad great awful boring fine long short "
    "story cast it i we they liked hated ending start"
)


def write_tiny_model(
    folder: Path,
    labels: Sequence[str] = ("negative", "positive"),
    seed: int = 0,
    rule: bool = False,
    max_length: int = 64,
    family: str = "distilbert",
    word: str = "good",
    width: int = 16,
) -> Path:
    """Writes a saved-model folder with random weights, or with ``rule`` a DistilBERT that answers the last label
    exactly when the text has ``word`` (one of WORDS) in it, else the first."""
    torch.manual_seed(seed)
    tokenizer = learn_wordpiece([WORDS] * 4, vocabulary_size=200, max_length=max_length)
    model: PackedModel
    if family == "distilbert":
        model = new_distilbert(
            layers=1,
            width=width,
            heads=2,
            feed_forward_width=2 * width,
            vocabulary_size=tokenizer.vocabulary_size,
            max_length=max_length,
            labels=labels,
        ).eval()
        if rule:
            _teach_rule(model, tokenizer.backend.get_vocab()[word])
    else:
        model = new_network(family, labels=labels, vocabulary_size=tokenizer.vocabulary_size, width=width).eval()
    sample = tokenize(tokenizer, ["the movie was good", "awful plot and boring acting"] * 4, max_length).tokens
    with torch.inference_mode():
        logits = model(pack([sample[i] for i in range(len(sample))])).numpy()
    definition = F1Definition("binary", labels[-1]) if len(labels) == 2 else F1Definition("macro")
    write_model_folder(folder, model, tokenizer.files, ModelInfo(tuple(labels), max_length, definition), sample, logits)
    return folder


def _teach_rule(model: PackedDistilBert, word: int) -> None:
    """Weights set by hand: one direction marks the word, uniform attention carries it to the first token."""
    encoder: Any = model.distilbert
    embeddings, width = encoder["embeddings"], model.config.width
    layer = encoder["transformer"].layer[0]
    with torch.no_grad():
        embeddings.position_embeddings.weight.zero_()
        signs = torch.tensor([1.0, -1.0]).repeat(width // 2)
        table = embeddings.word_embeddings.weight
        table.copy_(signs.roll(1) * torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(width // 4))
        table[word] = signs
        mark = signs / width  # reads 1.0 from the marked word, 0.0 from every other
        for linear in (layer.attention.q_lin, layer.attention.k_lin, layer.ffn.lin2):
            linear.weight.zero_()
            linear.bias.zero_()
        layer.attention.v_lin.weight.copy_(torch.outer(signs * 8.0, mark))
        layer.attention.v_lin.bias.zero_()
        layer.attention.out_lin.weight.copy_(torch.eye(width))
        layer.attention.out_lin.bias.zero_()
        model.pre_classifier.weight.zero_()
        model.pre_classifier.weight[0] = mark
        model.pre_classifier.bias.zero_()
        model.classifier.weight.zero_()
        model.classifier.weight[-1, 0] = 40.0
        model.classifier.bias.zero_()
        model.classifier.bias[-1] = -4.0


def tokens_of(rng: np.random.Generator, lengths: Sequence[int], vocabulary: int) -> TokenizedTexts:
    """Random token ids of the given lengths."""
    return TokenizedTexts.from_lists([rng.integers(5, vocabulary, size=length).tolist() for length in lengths])
