"""A pretrained DistilBERT, from a hub id or a folder, for training to begin with.

Read once for a search, by its driver: this is the only place that imports transformers' models, and trials get the
weights through Ray's object store instead of each from a hub.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.inference.distilbert import SIZES, DistilBertConfig
from serve_app.inference.tokenizing import TextTokenizer, read_tokenizer

_POSITIONS = "embeddings.position_embeddings.weight"
# The names that weights of norms had in TensorFlow: files converted long ago have them still. transformers 4 read them
# all, 5 reads those of the embeddings alone.
_RENAMED = {r"(LayerNorm|layer_norm)\.gamma$": r"\1.weight", r"(LayerNorm|layer_norm)\.beta$": r"\1.bias"}
_MOST_OF_AN_ERROR = 300  # characters


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what was found, what was expected and the fix."""


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

    Raises CheckpointError when there is none, or when it is of another family, not whole or not finite.
    """
    import torch
    import transformers

    _be_quiet()
    if not Path(location).is_dir() and (Path(location).is_absolute() or location.count("/") > 1):
        raise CheckpointError("there is no such folder, and a hub id is OWNER/NAME")
    with _told("its config.json cannot be read"):
        config = transformers.AutoConfig.from_pretrained(location, revision=revision)
    if config.model_type != "distilbert":
        raise CheckpointError(f"it is a {config.model_type} model, expected distilbert (model_type in config.json)")
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError("its weights are quantized, and training needs those that they were made from")
    try:
        sizes = DistilBertConfig.from_stock(config.to_dict(), labels=())
    except ValueError as error:
        raise CheckpointError(f"its config.json does not fit: {error}") from None
    _require_safetensors(location, revision)
    with _told("its weights are not whole safetensors files (after git clone: git lfs pull)"):
        loaded: Any = transformers.DistilBertModel.from_pretrained(
            location,
            revision=revision,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            key_mapping=_RENAMED,
            ignore_mismatched_sizes=True,  # told below, with their names
            output_loading_info=True,
        )
    stock, loading = loaded
    _require_whole(loading, made_by_formula={_POSITIONS} if config.sinusoidal_pos_embds else set())
    weights = {f"distilbert.{name}": tensor.numpy() for name, tensor in stock.state_dict().items()}
    for name, values in weights.items():
        if not np.isfinite(values).all():
            raise CheckpointError(f"its weight {name} has values that are not finite (NaN or infinite)")
    return Checkpoint({name: getattr(sizes, name) for name in SIZES}, weights)


def import_tokenizer(location: str, revision: str = "main") -> TextTokenizer:
    """The tokenizer of a hub id or folder, of ``tokenizer.json`` or of ``vocab.txt``, as transformers reads it.

    Raises CheckpointError when there is none, or none with a fast (Rust) form.
    """
    import transformers

    _be_quiet()
    expected = "expected tokenizer.json, or vocab.txt, beside the weights"
    with _told(f"it has no usable tokenizer ({expected})"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, revision=revision, use_fast=True)
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        raise CheckpointError(f"it has no fast tokenizer: {expected}")
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        # Where there is no file at all, transformers makes one that knows no word.
        raise CheckpointError(f"its tokenizer has no words: {expected}; copy it from the model that this comes from")
    with tempfile.TemporaryDirectory(prefix="tg-tokenizer-") as folder:
        tokenizer.save_pretrained(folder)
        imported = read_tokenizer(folder)
    if not imported.backend.num_special_tokens_to_add(is_pair=False):
        raise CheckpointError(
            "its tokenizer puts no [CLS] before a text, which the classifier reads: tokenizer.json needs a "
            "post_processor, as DistilBertTokenizerFast writes it"
        )
    return imported


def _be_quiet() -> None:
    """No progress bars and retries in a job's log: what goes wrong in the end is in the error."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Tells what a library says of a file: malformed ones make it raise any class there is."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split()) or repr(error)
        if not isinstance(error, OSError | ValueError):
            said = f"{type(error).__name__}: {said}"
        if len(said) > _MOST_OF_AN_ERROR:
            said = f"{said[:_MOST_OF_AN_ERROR]} ..."
        raise CheckpointError(f"{what}: {said}") from error


def _require_safetensors(location: str, revision: str) -> None:
    """Looked for here because transformers would have a hub's bot convert the pickle of a stranger's repository."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    away = False
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if Path(location).is_dir():
            if (Path(location) / name).is_file():
                return
            continue
        with _told("its weights cannot be read"), contextlib.suppress(EntryNotFoundError):
            try:
                hf_hub_download(location, name, revision=revision)
                return
            except LocalEntryNotFoundError:  # not in the cache, and nobody to ask
                away = True
    if away:
        raise CheckpointError(
            "its weights are not in the cache, and the hub cannot be reached: connect once, set HF_HOME to a cache "
            "that has them, or give a folder"
        )
    raise CheckpointError(
        "it has no model.safetensors, and pytorch_model.bin is pickle, which can run code when it is opened and is "
        "never loaded: if you trust that file, convert it once with transformers, "
        "DistilBertModel.from_pretrained(IT).save_pretrained(FOLDER), and copy the tokenizer's files there"
    )


def _require_whole(loading: Mapping[str, Any], made_by_formula: set[str]) -> None:
    """``loading``: what transformers tells of a load."""
    if mismatched := sorted(loading["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise CheckpointError(
            f"its weight {name} is {tuple(found)}, and its config.json says {tuple(expected)} "
            f"(different sizes: {len(mismatched)}): they are not of the same model"
        )
    if missing := sorted(set(loading["missing_keys"]) - made_by_formula):
        raise CheckpointError(
            f"its weights have no {missing[0]} (missing: {len(missing)}): they are not whole, or not of the DistilBERT "
            "that its config.json describes"
        )
