"""The inference engine: a saved-model folder to probabilities, on packed batches. The gate, batch jobs and serving
use this same class, so a score at the gate is the score in production."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from configs.exit_codes import UsageError
from serve_app.inference.attention import has_bf16_products
from serve_app.inference.distilbert import PackedDistilBert
from serve_app.inference.explanation import Explainer
from serve_app.inference.families import PackedModel
from serve_app.inference.folder import ModelFolderError
from serve_app.inference.int8 import has_int8, quantize
from serve_app.inference.packing import pack, plan_batches
from serve_app.inference.prepacked import prepack, unpack
from serve_app.inference.saved_model import (
    ModelInfo,
    read_info,
    read_model,
    read_sample,
    require_same_vocabulary,
)
from serve_app.inference.saved_model import weights_digest as digest_of
from serve_app.inference.token_ids import TokenizedTexts
from serve_app.inference.tokenizing import LocatedTokens, TextTokenizer, Tokenized, locate, read_tokenizer, tokenize

# Largest difference of a sample text's probability from the fp32 one that a load accepts. bf16 keeps 8 bits of
# mantissa; trained models here stayed within 0.02, and a broken model is off by far more.
SAMPLE_TOLERANCE = {"fp32": 1e-3, "bf16": 0.06, "int8": 0.1}

_WARM_UP_TEXTS = 8


def choose_precision(wanted: str, device_type: str) -> tuple[str, str]:
    """``("fp32" | "bf16" | "int8", reason)`` for ``wanted`` (auto or one of these) on this hardware.

    Raises UsageError for int8 where it is not computed.
    """
    if wanted == "int8" and (device_type != "cpu" or not has_int8()):
        where = "this processor has no AVX512-VNNI" if device_type == "cpu" else f"the model is on {device_type}"
        raise UsageError(f"precision int8 is computed on processors with AVX512-VNNI, and {where}: use precision auto")
    if wanted != "auto":
        return wanted, "asked for"
    if device_type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU has bf16"
        return "fp32", "the GPU has no bf16"
    for feature, name in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-BF16")):
        check = getattr(torch.cpu, feature, None)
        if check is not None and check():
            return "bf16", f"the processor has {name}"
    return "fp32", "the processor has neither AVX512-BF16 nor AMX"


class Engine:
    """A loaded model. Made by ``Engine.load``; safe to call from several threads at once."""

    def __init__(
        self,
        model: PackedModel,
        tokenizer: TextTokenizer,
        info: ModelInfo,
        *,
        precision: str,
        precision_reason: str,
        device: torch.device,
        weights_digest: str,
        sample: TokenizedTexts,
        max_batch_tokens: int,
        max_batch_texts: int,
    ) -> None:
        self.info = info
        self.precision = precision
        self.precision_reason = precision_reason
        self.device_type = device.type
        self.weights_digest = weights_digest
        self._device = device
        exact = model.to(device, torch.bfloat16 if precision == "bf16" else torch.float32).eval()
        self._model: PackedModel = exact
        self._with_gradients: Callable[[], PackedModel] = lambda: exact
        if isinstance(exact, PackedDistilBert) and device.type == "cpu":
            if precision == "int8":
                self._model = quantize(exact)
            elif precision == "bf16" and has_bf16_products():
                self._model = packed = prepack(exact)
                self._with_gradients = lambda: unpack(packed)
        self._tokenizer, self._sample = tokenizer, sample
        self._max_batch_tokens, self._max_batch_texts = max_batch_tokens, max_batch_texts

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        precision: str = "auto",
        device: str | None = None,
        threads: int | None = None,
        max_batch_tokens: int = 16_384,
        max_batch_texts: int = 64,
    ) -> Engine:
        """Loads, checks and warms the saved model of ``folder``.

        ``precision``: as for ``choose_precision``; what has no int8 form takes auto for it. ``device``: cpu or cuda
        (default: cuda where there is one, but for int8). ``threads``: intra-op threads of the calling thread (default:
        as they are). The folder's sample is computed and compared with its stored logits. Raises ModelFolderError for
        an incomplete folder, pickled weights, a file that is none, NaN, or probabilities out of SAMPLE_TOLERANCE, and
        UsageError for int8 on hardware without.
        """
        folder = Path(folder)
        if threads is not None:
            torch.set_num_threads(threads)
        on_gpu = torch.cuda.is_available() and precision != "int8"
        where = torch.device(device or ("cuda" if on_gpu else "cpu"))
        chosen, reason = choose_precision(precision, where.type)
        info = read_info(folder)
        try:
            tokenizer = read_tokenizer(folder)
        except ValueError as error:
            raise ModelFolderError(str(error)) from None
        sample, logits = read_sample(folder)
        model = read_model(folder)
        require_same_vocabulary(folder, model, tokenizer, sample, info.max_length)
        if chosen == "int8" and not isinstance(model, PackedDistilBert):
            chosen, reason = choose_precision("auto", where.type)
            reason = f"{model.config.family} has no int8 form; {reason}"
        engine = cls(
            model,
            tokenizer,
            info,
            precision=chosen,
            precision_reason=reason,
            device=where,
            weights_digest=digest_of(folder),
            sample=sample,
            max_batch_tokens=max_batch_tokens,
            max_batch_texts=max_batch_texts,
        )
        engine._check_sample(folder, logits)
        return engine

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of their ids."""
        return self.info.labels

    @property
    def max_length(self) -> int:
        """Longest text, tokens."""
        return self.info.max_length

    def tokenize(self, texts: Sequence[str], truncate: bool = True) -> Tokenized:
        """Token ids of ``texts``, cut to ``max_length`` if ``truncate``."""
        return tokenize(self._tokenizer, texts, self.max_length, truncate)

    def forward(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """Probabilities, float32 [texts, classes], of the token ids of some texts, in one packed forward pass."""
        batch = pack(ids).to(self._device)
        with torch.inference_mode():
            logits = self._model(batch).float()
            return torch.softmax(logits / self.info.temperature, dim=-1).cpu().numpy()

    def locate(self, text: str) -> LocatedTokens:
        """The tokens of ``text``, cut to ``max_length``, with their places in it."""
        return locate(self._tokenizer, text, self.max_length)

    def explainer(self) -> Explainer:
        """For the words behind an answer; it holds up nobody.

        On this model's weights; those of int8 have no gradients, so it is on their fp32 ones then. Those of bf16 on a
        processor are copied for it.
        """
        return Explainer(self._with_gradients(), self.info.temperature)

    def predict_tokens(self, tokens: TokenizedTexts, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Probabilities, float32 [texts, classes], of tokenised texts.

        Batches depend on the lengths alone, so the same texts in the same order give the same bits on one machine.
        Texts of similar length go together. ``progress`` is called with the number of texts done after each batch.
        """
        probabilities = np.empty((len(tokens), len(self.labels)), dtype=np.float32)
        by_length = np.argsort(tokens.lengths, kind="stable")
        for indices in plan_batches(tokens.lengths, self._max_batch_tokens, self._max_batch_texts, by_length):
            probabilities[indices] = self.forward([tokens[int(index)] for index in indices])
            if progress is not None:
                progress(len(indices))
        return probabilities

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities, float32 [texts, classes], of ``texts``, each cut to ``max_length`` tokens."""
        return self.predict_tokens(self.tokenize(texts).tokens)

    def warm_up(self) -> None:
        """A forward pass of a few texts of the folder's sample, on the thread that calls it."""
        self.forward([self._sample[index] for index in range(min(_WARM_UP_TEXTS, len(self._sample)))])

    def _check_sample(self, folder: Path, logits: np.ndarray) -> None:
        """Compares the sample's probabilities with those of its stored ``logits``."""
        expected = torch.softmax(torch.from_numpy(logits) / self.info.temperature, dim=-1).numpy()
        found = self.predict_tokens(self._sample)
        if not np.isfinite(found).all():
            raise ModelFolderError(f"{folder}: the model gives output that is not finite (NaN or infinite)")
        if found.shape != expected.shape:
            raise ModelFolderError(f"{folder}: the sample has {expected.shape[1]} classes, the model {found.shape[1]}")
        difference, tolerance = float(np.abs(found - expected).max()), SAMPLE_TOLERANCE[self.precision]
        if difference > tolerance:
            raise ModelFolderError(
                f"{folder}: probabilities of the folder's sample are off by {difference:.4f} in "
                f"{self.precision}, at most {tolerance} is accepted; serve it with precision "
                f"{'auto' if self.precision == 'int8' else 'fp32'}"
            )
