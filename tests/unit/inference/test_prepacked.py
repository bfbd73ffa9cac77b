"""DistilBERT with its weights in oneDNN's order: the same answers, and plain weights again where needed."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serve_app.inference import engine as engine_module
from serve_app.inference.engine import Engine
from serve_app.inference.prepacked import PrepackedLinear, is_faster_prepacked, prepack, unpack
from serve_app.inference.saved_model import read_model
from tests.tiny import write_tiny_model

needs_bf16 = pytest.mark.skipif(not is_faster_prepacked("bf16"), reason="bf16: oneDNN computes none on this processor")
PRECISIONS = [pytest.param("bf16", marks=needs_bf16), "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
CLOSE = {"bf16": 0.01, "fp32": 1e-5}
TEXTS = ["the movie was good", "an awful plot", "good " * 50, "boring acting but a fine story", "it"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model", rule=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tokens", [1, 5, 64])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_a_layer_is_that_of_its_plain_weights(precision: str, tokens: int, activation: str) -> None:
    torch.manual_seed(0)
    dtype = DTYPES[precision]
    first, second = (nn.Linear(96, 40, dtype=dtype) for _ in range(2))
    rows = torch.randn(tokens, 96, dtype=dtype)
    layer = PrepackedLinear(first, second, activation=activation)
    with torch.inference_mode():
        exact = torch.cat([linear.float()(rows.float()) for linear in (first, second)], 1)
        expected = nn.functional.gelu(exact) if activation == "gelu" else exact
        torch.testing.assert_close(layer(rows).float(), expected, atol=2 * CLOSE[precision], rtol=CLOSE[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plain_weights_come_back_bit_for_bit(folder: Path, precision: str) -> None:
    plain = read_model(folder).to(DTYPES[precision])
    again = unpack(prepack(plain)).state_dict()  # type: ignore[arg-type]
    assert list(again) == list(plain.state_dict())
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, again[name]), name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_engine_answers_and_explains_as_with_plain_weights(
    folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "is_faster_prepacked", lambda precision: True)
    prepacked = Engine.load(folder, precision=precision, device="cpu")
    monkeypatch.setattr(engine_module, "is_faster_prepacked", lambda precision: False)
    plain = Engine.load(folder, precision=precision, device="cpu")
    np.testing.assert_allclose(prepacked.predict(TEXTS), plain.predict(TEXTS), atol=CLOSE[precision])
    found, expected = (one.explainer().explain(one.locate("an awful movie"), 1, 8) for one in (prepacked, plain))
    assert found == expected


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_are_in_memory_once(folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def read(folder: Path) -> Any:
        model = read_model(folder)
        held.append(weakref.ref(model.distilbert["transformer"].layer[0].ffn.lin1))  # type: ignore[union-attr]
        return model

    monkeypatch.setattr(engine_module, "read_model", read)
    monkeypatch.setattr(engine_module, "is_faster_prepacked", lambda precision: True)
    engine = Engine.load(folder, precision=precision, device="cpu")
    assert any(isinstance(module, PrepackedLinear) for module in engine._model.modules())
    assert held[0]() is None
