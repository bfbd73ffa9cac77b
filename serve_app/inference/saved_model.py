"""The saved-model folder: what training writes, the gate scores, the registry keeps and serving loads.

    config.json model.safetensors tokenizer.json tokenizer_config.json   family, sizes and labels; weights; tokenizer:
                                                                         for DistilBERT as stock transformers has them
    sample.safetensors    token ids of up to 64 validation texts with their fp32 logits, for checks at load
    trialgate.json        labels, max_length, the definition of F1, temperature, SHA-256 of tokenizer.json (no other
                          check tells it from another model's); written last: complete when it exists

Weights are read into memory, never mapped: who cuts or changes the file of a model in use would kill the process, or
change its answers.

The folder is written under a temporary name and renamed, so one that exists is whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from serve_app.inference.digests import files_digest
from serve_app.inference.families import PackedModel, read_packed_model, write_config
from serve_app.inference.folder import INFO_FILE, SAMPLE_FILE, WEIGHTS_FILE, ModelFolderError
from serve_app.inference.metrics import F1Definition
from serve_app.inference.token_ids import TokenizedTexts
from serve_app.inference.tokenizing import TextTokenizer

FORMAT_VERSION = 1
_NEEDED = (INFO_FILE, WEIGHTS_FILE, SAMPLE_FILE, "config.json", "tokenizer.json", "tokenizer_config.json")
_DIGESTED = (INFO_FILE, WEIGHTS_FILE, "config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class ModelInfo:
    """What a saved model says of itself.

    ``labels``: class names in the order of their ids. ``max_length``: longest text, tokens. ``f1``: the definition
    that its scores use. ``temperature``: logits are divided by it before the softmax; 1.0 = not calibrated.
    """

    labels: tuple[str, ...]
    max_length: int
    f1: F1Definition
    temperature: float = 1.0
    format_version: int = FORMAT_VERSION


def write_model_folder(
    folder: Path,
    model: PackedModel,
    tokenizer_files: Mapping[str, bytes],
    info: ModelInfo,
    sample: TokenizedTexts,
    sample_logits: np.ndarray,
) -> None:
    """Writes the folder, replacing one of the same name.

    ``tokenizer_files``: name to content. ``sample_logits``: float32 [texts of ``sample``, classes].
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_config(model, temporary)
    weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
    for name, content in tokenizer_files.items():
        (temporary / name).write_bytes(content)
    tensors = {
        "ids": torch.from_numpy(np.ascontiguousarray(sample.ids)),
        "offsets": torch.from_numpy(np.ascontiguousarray(sample.offsets)),
        "logits": torch.from_numpy(np.ascontiguousarray(sample_logits, dtype=np.float32)),
    }
    save_file(tensors, temporary / SAMPLE_FILE)
    description = {
        "format_version": info.format_version,
        "labels": list(info.labels),
        "max_length": info.max_length,
        "f1": info.f1.key,
        "temperature": info.temperature,
        "tokenizer_digest": hashlib.sha256(tokenizer_files["tokenizer.json"]).hexdigest(),
    }
    (temporary / INFO_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def read_info(folder: Path) -> ModelInfo:
    """The folder's ``trialgate.json``.

    Raises ModelFolderError for a missing file, a wrong value, or a tokenizer other than the one that was written.
    """
    _require_files(Path(folder))
    path = Path(folder) / INFO_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        info = ModelInfo(
            labels=tuple(str(label) for label in content["labels"]),
            max_length=int(content["max_length"]),
            f1=F1Definition.from_key(content["f1"]),
            temperature=float(content["temperature"]),
            format_version=version,
        )
        expected_digest = content.get("tokenizer_digest")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelFolderError(f"{path} is not a model description: {error!r}") from None
    if version != FORMAT_VERSION:
        raise ModelFolderError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}")
    possible = len(set(info.labels)) == len(info.labels) >= 2 and info.max_length >= 1
    if not possible or not 0 < info.temperature < math.inf:
        raise ModelFolderError(f"{path} has values that cannot be: {content}")
    digest = hashlib.sha256((Path(folder) / "tokenizer.json").read_bytes()).hexdigest()
    if expected_digest not in (None, digest):  # None: of an earlier release
        raise ModelFolderError(
            f"{Path(folder) / 'tokenizer.json'} is not the tokenizer that the model was trained with: its SHA-256 is "
            f"{digest[:16]}..., {INFO_FILE} has {str(expected_digest)[:16]}..."
        )
    return info


def read_model(folder: Path) -> PackedModel:
    """The model with its fp32 weights.

    Raises ModelFolderError if weights are missing or not finite, or the labels contradict each other.
    """
    folder, info = Path(folder), read_info(folder)
    try:
        weights = load_file(folder / WEIGHTS_FILE, backend="pread")
        model = read_packed_model(folder, weights).eval()
    except (SafetensorError, RuntimeError) as error:
        raise ModelFolderError(f"{folder / WEIGHTS_FILE} does not hold this model's weights: {error}") from None
    except ValueError as error:
        raise ModelFolderError(str(error)) from None
    if model.config.labels != info.labels:
        raise ModelFolderError(
            f"{folder / 'config.json'} has labels {list(model.config.labels)}, {INFO_FILE} has "
            f"{list(info.labels)}: they must be the same, in the same order"
        )
    for name, values in weights.items():
        if not values.sum().isfinite() and not values.isfinite().all():  # a sum is quick, but may overflow
            raise ModelFolderError(f"{folder / WEIGHTS_FILE}: {name} has values that are not finite (NaN or infinite)")
    return model


def require_same_vocabulary(
    folder: Path, model: PackedModel, tokenizer: TextTokenizer, sample: TokenizedTexts, max_length: int
) -> None:
    """Raises ModelFolderError where the ids of the tokenizer, those of the sample, or the positions of a text of
    ``max_length`` tokens go beyond what the model has embeddings for."""
    limit, positions = model.config.vocabulary_size, getattr(model.config, "max_length", max_length)
    if sample.ids.min(initial=0) < 0:
        raise ModelFolderError(f"{folder / SAMPLE_FILE} has negative token ids")
    ids = int(sample.ids.max(initial=0)) + 1
    for name, needed in (("tokenizer.json", tokenizer.vocabulary_size), (SAMPLE_FILE, ids)):
        if needed > limit:
            raise ModelFolderError(
                f"{folder / name} has {needed} token ids, the model {limit}: they are not of the same model"
            )
    if max_length > positions:
        raise ModelFolderError(
            f"{folder / INFO_FILE} has max_length {max_length}, and the model has {positions} positions"
        )


def read_sample(folder: Path) -> tuple[TokenizedTexts, np.ndarray]:
    """The folder's sample: token ids and their fp32 logits [texts, classes]."""
    path = Path(folder) / SAMPLE_FILE
    try:
        tensors = load_file(path, backend="pread")
        sample = TokenizedTexts(tensors["ids"].numpy(), tensors["offsets"].numpy())
        logits = tensors["logits"].numpy()
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error!r}") from None
    if len(sample) != len(logits) or not len(sample) or not np.isfinite(logits).all():
        raise ModelFolderError(
            f"{path} is not sound: {len(sample)} texts, logits {logits.shape}, finite: "
            f"{bool(np.isfinite(logits).all())}"
        )
    return sample, logits


def parameter_count(folder: Path) -> int:
    """How many weights the model has."""
    with safe_open(Path(folder) / WEIGHTS_FILE, "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def weights_digest(folder: Path) -> str:
    """SHA-256 (64 hex characters) of what decides the model's answers: weights, config, tokenizer, calibration."""
    _require_files(Path(folder))
    return files_digest(Path(folder), _DIGESTED)


def _require_files(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is not a folder")
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if not missing:
        return
    pickled = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    hint = f"; {', '.join(pickled)} is pickle, which is never loaded" if pickled and WEIGHTS_FILE in missing else ""
    raise ModelFolderError(f"{folder} is not a complete saved model: {', '.join(missing)} missing{hint}")
