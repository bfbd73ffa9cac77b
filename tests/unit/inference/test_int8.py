"""The int8 form of DistilBERT: close to fp32, of each token alone, and refused where it is not close enough."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from configs.exit_codes import UsageError
from configs.schema import ServingConfig, Settings
from serve_app.inference import engine as engine_module
from serve_app.inference.engine import SAMPLE_TOLERANCE, Engine
from serve_app.inference.folder import SAMPLE_FILE, WEIGHTS_FILE, ModelFolderError
from serve_app.inference.int8 import Int8Linear, has_int8, quantize
from serve_app.inference.packing import pack
from serve_app.inference.saved_model import read_model, read_sample
from tests.tiny import write_tiny_model

needs_int8 = pytest.mark.skipif(not has_int8(), reason="int8: this processor has no AVX512-VNNI")
TEXTS = ["the movie was good", "an awful plot", "good " * 50, "boring acting but a fine story", "it"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


@needs_int8
@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_a_layer_is_close_to_its_exact_form(tokens: int) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(96, 40), nn.Linear(96, 24)
    rows = torch.randn(tokens, 96)
    with torch.inference_mode():
        found, expected = Int8Linear(first, second)(rows), torch.cat([first(rows), second(rows)], 1)
    # A factor is off by at most half of 1/127 of its row's largest, 3 % of the sums' spread for the worst of 4,096.
    difference = (found - expected).abs()
    assert difference.max() < 0.04 * expected.std()
    assert difference.mean() < 0.01 * expected.std()


@needs_int8
def test_a_token_is_rounded_by_itself() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(64, 64))
    rows = torch.randn(8, 64)
    loud = rows.clone()
    loud[3] *= 1e6
    with torch.inference_mode():
        kept, beside = layer(rows), layer(loud)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(kept[others], beside[others])


@needs_int8
def test_rows_of_zeros_give_the_bias() -> None:
    linear = nn.Linear(32, 16)
    with torch.inference_mode():
        assert torch.equal(Int8Linear(linear)(torch.zeros(3, 32)), linear.bias.expand(3, 16))


@needs_int8
def test_the_engine_answers_like_fp32(folder: Path) -> None:
    exact, engine = Engine.load(folder, precision="fp32"), Engine.load(folder, precision="int8")
    assert (engine.precision, engine.precision_reason) == ("int8", "asked for")
    probabilities = engine.predict(TEXTS)
    np.testing.assert_allclose(probabilities, exact.predict(TEXTS), atol=0.02)
    assert not np.array_equal(probabilities, exact.predict(TEXTS)), "nothing was rounded"
    alone = np.concatenate([engine.predict([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, probabilities, atol=1e-5)


@needs_int8
def test_explanations_are_those_of_fp32(folder: Path) -> None:
    text = "an awful movie"
    found = [
        engine.explainer().explain(engine.locate(text), label=1, steps=8)
        for engine in (Engine.load(folder, precision="fp32"), Engine.load(folder, precision="int8"))
    ]
    assert found[0] == found[1]


@needs_int8
def test_a_model_that_int8_changes_is_refused(folder: Path) -> None:
    # One unit so loud that the others are rounded away; nothing reads it, so fp32 does not hear it.
    weights = load_file(folder / WEIGHTS_FILE)
    block = "distilbert.transformer.layer.0.ffn."
    weights[f"{block}lin1.bias"][0] = 1e6
    weights[f"{block}lin1.weight"] *= 50
    weights[f"{block}lin2.weight"] *= 200
    weights[f"{block}lin2.weight"][:, 0] = 0.0
    weights["pre_classifier.weight"] *= 20
    weights["classifier.weight"] *= 20
    weights["classifier.bias"][1] = -5.0  # between what fp32 and int8 then say
    save_file(weights, folder / WEIGHTS_FILE)
    _write_sample_logits(folder)
    Engine.load(folder, precision="fp32")
    with pytest.raises(ModelFolderError, match=rf"in int8, at most {SAMPLE_TOLERANCE['int8']} .* precision auto"):
        Engine.load(folder, precision="int8")


def _write_sample_logits(folder: Path) -> None:
    """Makes the folder's sample true to its weights again."""
    sample, _ = read_sample(folder)
    with torch.inference_mode():
        logits = read_model(folder)(pack(list(sample)))
    save_file({**load_file(folder / SAMPLE_FILE), "logits": logits}, folder / SAMPLE_FILE)


@needs_int8
def test_what_is_not_in_the_blocks_is_shared(folder: Path) -> None:
    exact = Engine.load(folder, precision="fp32")._model
    quantized = quantize(exact)  # type: ignore[arg-type]
    assert quantized.token_embeddings is exact.token_embeddings
    assert not any(parameter.is_meta for parameter in quantized.parameters())


@needs_int8
def test_other_families_take_auto(tmp_path: Path) -> None:
    engine = Engine.load(write_tiny_model(tmp_path / "cnet", family="cnet"), precision="int8")
    assert engine.precision == Engine.load(tmp_path / "cnet").precision
    assert engine.precision_reason.startswith("cnet has no int8 form; ")


def test_hardware_without_int8_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="on cuda: use precision auto"):
        Engine.load(folder, precision="int8", device="cuda")
    monkeypatch.setattr(engine_module, "has_int8", lambda: False)
    with pytest.raises(UsageError, match="this processor has no AVX512-VNNI: use precision auto"):
        Engine.load(folder, precision="int8")


def test_settings_refuse_it_on_gpus() -> None:
    assert ServingConfig(precision="int8").precision == "int8"
    with pytest.raises(ValueError, match=r"serving\.precision int8 .*gpus_per_replica is 1"):
        ServingConfig(precision="int8", gpus_per_replica=1)
    with pytest.raises(ValueError, match=r"batch_score\.gpus_per_worker is 1"):
        Settings.model_validate({"serving": {"precision": "int8"}, "batch_score": {"gpus_per_worker": 1}})
