"""The model families. Every model is a module that takes a packed batch and returns logits [texts, classes].

A saved DistilBERT has transformers' own ``config.json`` (``model_type`` distilbert) and names of weights, so that stock
transformers opens it too. The others have ``family`` there, which transformers does not take for a model of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serve_app.inference.distilbert import DistilBertConfig, PackedDistilBert
from serve_app.inference.networks import NETWORKS, SmallNetwork

PackedModel = PackedDistilBert | SmallNetwork
FAMILIES = ("distilbert", *NETWORKS)


def new_distilbert(
    weights: Mapping[str, np.ndarray] | None = None, *, labels: Sequence[str], **sizes: Any
) -> PackedDistilBert:
    """A DistilBERT with ``weights``, and random ones from torch's global generator where it has none.

    ``sizes``: the fields of its config.
    """
    with torch.device("meta"):  # no time spent on random weights that are replaced at once
        model = PackedDistilBert(DistilBertConfig(labels=tuple(labels), **sizes))
    # Not by ``to_empty``, which loads half of PyTorch's compiler for it, 0.6 s of the processor.
    empty = {name: torch.empty(weight.shape) for name, weight in model.state_dict().items()}
    model.load_state_dict(empty, assign=True)
    model.fill(weights or {})
    return model


def new_network(family: str, *, labels: Sequence[str], **sizes: Any) -> SmallNetwork:
    """A small network with random weights from torch's global generator; ``sizes``: the fields of its config."""
    config, network = NETWORKS[family]
    return network(config(labels=tuple(labels), **sizes))


def write_config(model: PackedModel, folder: Path) -> None:
    """Writes ``config.json``."""
    config = model.config
    if isinstance(config, DistilBertConfig):
        content = config.as_stock()
    else:
        content = {"family": config.family, **asdict(config)}
        del content["labels"]
    content["id2label"] = dict(enumerate(config.labels))
    content["label2id"] = {name: place for place, name in enumerate(config.labels)}
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_packed_model(folder: Path, weights: Mapping[str, torch.Tensor]) -> PackedModel:
    """The model that ``config.json`` describes, with ``weights`` under the names that it saves them under, as fp32.

    Raises ValueError for a config that describes none, RuntimeError for weights of another model.
    """
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    found = content if isinstance(content, dict) else {}
    family = found.pop("family", found.get("model_type"))
    if family not in FAMILIES:
        raise ValueError(f"{path} is of the family {family!r}, expected one of {', '.join(FAMILIES)}")
    model: PackedModel
    try:
        names, _ = found.pop("id2label", {}), found.pop("label2id", None)
        labels = tuple(names[str(place)] for place in range(len(names)))
        with torch.device("meta"):  # as above
            if family == "distilbert":
                model = PackedDistilBert(DistilBertConfig.from_stock(found, labels))
            else:
                model = new_network(family, labels=labels, **found)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a model of family '{family}': {error}") from None
    model.load_state_dict(weights, strict=True, assign=True)
    return model.float()
