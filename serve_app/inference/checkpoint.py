"""A pretrained DistilBERT, from a hub id or a folder, for training to begin with.

Read once for a search, by its driver: this is the only place that imports transformers' models, and trials get the
weights through Ray's object store instead of each from a hub.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve_app.inference.distilbert import SIZES, DistilBertConfig
from serve_app.inference.tokenizing import TextTokenizer, read_tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """``sizes``: the fields of a DistilBERT's config that the weights decide. ``weights``: fp32, by their names in a
    model, of the encoder alone: the classifier for the labels at hand is always new."""

    sizes: Mapping[str, int]
    weights: Mapping[str, np.ndarray]

    @property
    def max_length(self) -> int:
        """Longest text, tokens."""
        return self.sizes["max_length"]


def read_checkpoint(location: str, revision: str = "main") -> Checkpoint:
    """The weights of a hub id or folder, from safetensors only.

    Raises OSError when there is no such checkpoint, and ValueError when it is of another family or not complete.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(location, revision=revision)
    if config.model_type != "distilbert":
        raise ValueError(f"checkpoint '{location}' is a {config.model_type} model, expected distilbert")
    loaded: Any = transformers.DistilBertModel.from_pretrained(
        location,
        revision=revision,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
    )
    stock, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"checkpoint '{location}' has no {missing[0]} ({len(missing)} weights are missing)")
    weights = {f"distilbert.{name}": tensor.numpy() for name, tensor in stock.state_dict().items()}
    ours = DistilBertConfig.from_stock(config.to_dict(), labels=())
    return Checkpoint({name: getattr(ours, name) for name in SIZES}, weights)


def import_tokenizer(location: str, revision: str = "main") -> TextTokenizer:
    """The fast tokenizer of a hub id or folder. Raises OSError when there is none, ValueError when it is not fast."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(location, revision=revision, use_fast=True)
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        raise ValueError(f"{location} has no fast tokenizer (tokenizer.json)")
    with tempfile.TemporaryDirectory(prefix="tg-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        return read_tokenizer(folder)
