"""DistilBERT in bf16 with its weights in oneDNN's order: the same answers, and plain weights again where needed."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serve_app.inference import engine as engine_module
from serve_app.inference.attention import has_bf16_products
from serve_app.inference.engine import Engine
from serve_app.inference.prepacked import PrepackedLinear, prepack, unpack
from serve_app.inference.saved_model import read_model
from tests.tiny import write_tiny_model

needs_bf16 = pytest.mark.skipif(not has_bf16_products(), reason="bf16: oneDNN computes none on this processor")
TEXTS = ["the movie was good", "an awful plot", "good " * 50, "boring acting but a fine story", "it"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", rule=True)


@needs_bf16
@pytest.mark.parametrize("tokens", [1, 5, 64])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_a_layer_is_that_of_its_plain_weights(tokens: int, activation: str) -> None:
    torch.manual_seed(0)
    first, second = (nn.Linear(96, 40, dtype=torch.bfloat16) for _ in range(2))
    rows = torch.randn(tokens, 96, dtype=torch.bfloat16)
    layer = PrepackedLinear(first, second, activation=activation)
    with torch.inference_mode():
        exact = torch.cat([linear.float()(rows.float()) for linear in (first, second)], 1)
        expected = nn.functional.gelu(exact) if activation == "gelu" else exact
        torch.testing.assert_close(layer(rows).float(), expected, atol=0.02, rtol=0.01)


@needs_bf16
def test_the_plain_weights_come_back_bit_for_bit(folder: Path) -> None:
    plain = read_model(folder).to(torch.bfloat16)
    again = unpack(prepack(plain)).state_dict()  # type: ignore[arg-type]
    assert list(again) == list(plain.state_dict())
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, again[name]), name


@needs_bf16
def test_the_engine_answers_and_explains_as_with_plain_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepacked = Engine.load(folder, precision="bf16", device="cpu")
    monkeypatch.setattr(engine_module, "has_bf16_products", lambda: False)
    plain = Engine.load(folder, precision="bf16", device="cpu")
    np.testing.assert_allclose(prepacked.predict(TEXTS), plain.predict(TEXTS), atol=0.01)
    found, expected = (one.explainer().explain(one.locate("an awful movie"), 1, 8) for one in (prepacked, plain))
    assert found == expected


@needs_bf16
def test_weights_are_in_memory_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def read(folder: Path) -> Any:
        model = read_model(folder)
        held.append(weakref.ref(model.distilbert["transformer"].layer[0].ffn.lin1))  # type: ignore[union-attr]
        return model

    monkeypatch.setattr(engine_module, "read_model", read)
    engine = Engine.load(folder, precision="bf16", device="cpu")
    assert any(isinstance(module, PrepackedLinear) for module in engine._model.modules())
    assert held[0]() is None
