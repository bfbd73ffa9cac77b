"""One training run: a plain class, with or without Ray, on one process or several.

A step always takes ``batch_size`` texts, whatever the packing and the number of workers: they are drawn in random
order, dealt to the ranks, packed under the token budget, and the gradients of their *summed* losses are divided by
the step's number of texts. So 1 and 2 workers, or small and large token budgets, take the same steps.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from configs.model import TrainingConfig
from ray_jobs.calibration import fit_temperature
from ray_jobs.optimizer import TableAdamW, make_gradients_sparse
from serve_app.inference.engine import choose_precision
from serve_app.inference.metrics import F1Definition, confusion_matrix, f1_from_confusion
from serve_app.inference.packing import pack, plan_batches
from serve_app.inference.token_ids import TokenizedTexts


class TrainingDivergedError(FloatingPointError):
    """The loss became NaN or infinite; the trial has failed."""


@dataclass(frozen=True)
class LabelledTokens:
    """Tokenised texts with their class ids, int64 [texts]."""

    tokens: TokenizedTexts
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, max_length: int) -> LabelledTokens:
        """The same texts, those over ``max_length`` tokens cut before their final separator."""
        if self.tokens.lengths.max(initial=0) <= max_length:
            return self
        rows = [row if len(row) <= max_length else np.append(row[: max_length - 1], row[-1]) for row in self.tokens]
        return LabelledTokens(TokenizedTexts.from_lists(rows), self.labels)


@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave. Losses are nats per text; the training loss includes label smoothing and class weights.

    ``temperature``: what the logits are divided by for probabilities that are calibrated on the validation split.
    """

    epoch: int
    step: int
    train_loss: float
    validation_loss: float
    validation_f1: float
    validation_accuracy: float
    best_validation_f1: float
    best_epoch: int
    learning_rate: float
    train_texts_per_second: float
    train_tokens_per_second: float
    seconds: float
    temperature: float = 1.0  # reports written before there was one have none

    @property
    def is_best(self) -> bool:
        """Whether this epoch is the best so far."""
        return self.epoch == self.best_epoch

    def as_dict(self) -> dict[str, float | int]:
        """The fields as a flat mapping."""
        return asdict(self)


def seed_everything(seed: int) -> None:
    """Seeds Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """The share of the peak learning rate at optimizer step ``step`` (from 0): linear warm-up, then the decay to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return 1.0


def class_weights(setting: str | dict[str, float], labels: np.ndarray, names: tuple[str, ...]) -> torch.Tensor | None:
    """The factor on the loss of each class, fp32 [classes], or None; ``setting``: training.class_weights.

    ``labels``: class ids of the training texts. Raises ValueError when the setting names no label of ``names``.
    """
    if setting == "none":
        return None
    if isinstance(setting, dict):
        if unknown := sorted(setting.keys() - set(names)):
            raise ValueError(f"training.class_weights names '{unknown[0]}', which is not a label: {', '.join(names)}")
        return torch.tensor([setting.get(name, 1.0) for name in names])
    counts = np.bincount(labels, minlength=len(names))
    return torch.from_numpy(len(labels) / (len(names) * np.maximum(counts, 1))).float()


class Trainer:
    """Trains ``model`` (packed batch -> logits) on ``train`` and measures it on ``validation`` after every epoch.

    ``device``: where the model is. ``wrap``: puts the model into DDP when several processes train together
    (torch.distributed must be initialised then; every rank has all data and takes its own share).
    """

    def __init__(
        self,
        model: nn.Module,
        train: LabelledTokens,
        validation: LabelledTokens,
        config: TrainingConfig,
        *,
        label_names: tuple[str, ...],
        f1: F1Definition,
        device: torch.device | str = "cpu",
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self._train, self._validation = train, validation
        self._names, self._f1 = label_names, f1
        self._device = torch.device(device)
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._ranks = dist.get_world_size() if dist.is_initialized() else 1
        weights = class_weights(config.class_weights, train.labels, label_names)
        self._class_weights = None if weights is None else weights.to(self._device)
        if wrap is None and self._device.type == "cpu":
            # On a GPU a dense one costs little; two DDP workers with sparse ones took other steps than one worker.
            make_gradients_sparse(model)
        self._wrapped = wrap(model) if wrap is not None else model.to(self._device)
        self.precision, self.precision_reason = choose_precision(config.precision, self._device.type)
        steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self._total_steps = config.epochs * steps_per_epoch
        self._warmup_steps = (
            config.warmup_steps if config.warmup_steps is not None else round(config.warmup_ratio * self._total_steps)
        )
        self._optimizer = TableAdamW(_parameter_groups(model, config), config.learning_rate, config.max_grad_norm)
        self._step = 0
        self.reports: list[EpochReport] = []

    def run(self, on_epoch: Callable[[EpochReport], None] | None = None) -> list[EpochReport]:
        """All epochs that are left, or fewer when early stopping says so; ``on_epoch`` is called after each.

        Returns the reports of all epochs, also of those before ``restore``. Raises TrainingDivergedError when a loss
        is not finite.
        """
        reports = self.reports
        while len(reports) < self.config.epochs and not self._out_of_patience():
            epoch = len(reports) + 1
            best_f1, best_epoch = (reports[-1].best_validation_f1, reports[-1].best_epoch) if reports else (-1.0, 0)
            started = time.perf_counter()
            train_loss = self._train_epoch(epoch)
            trained = time.perf_counter()
            loss, f1, accuracy, temperature = self._validate()
            if not math.isfinite(train_loss) or not math.isfinite(loss):
                raise TrainingDivergedError(
                    f"epoch {epoch}: training loss {train_loss}, validation loss {loss}; a "
                    "lower training.learning_rate or more warm-up usually helps"
                )
            if f1 > best_f1:
                best_f1, best_epoch = f1, epoch
            reports.append(
                EpochReport(
                    epoch=epoch,
                    step=self._step,
                    train_loss=train_loss,
                    validation_loss=loss,
                    validation_f1=f1,
                    validation_accuracy=accuracy,
                    best_validation_f1=best_f1,
                    best_epoch=best_epoch,
                    learning_rate=self._learning_rate(self._step - 1),
                    train_texts_per_second=len(self._train) / (trained - started),
                    train_tokens_per_second=int(self._train.tokens.offsets[-1]) / (trained - started),
                    seconds=time.perf_counter() - started,
                    temperature=temperature,
                )
            )
            if on_epoch is not None:
                on_epoch(reports[-1])
        return reports

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next epoch depends on and ``reports`` does not hold: weights and optimizer, by name.

        Random numbers need no state: every epoch seeds its own.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for place, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{key}": torch.as_tensor(value) for key, value in values.items()}
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor], reports: Sequence[EpochReport]) -> None:
        """Goes on from a ``state`` (on any device) with the ``reports`` that go with it: as if never interrupted."""
        prefix = "model."
        self.model.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        )
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if not name.startswith(prefix):
                _, place, key = name.split(".", 2)
                states.setdefault(int(place), {})[key] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": states})
        self.reports = list(reports)
        self._step = reports[-1].step if reports else 0

    def _out_of_patience(self) -> bool:
        patience = self.config.early_stop_patience
        return (
            bool(self.reports) and patience is not None and len(self.reports) - self.reports[-1].best_epoch >= patience
        )

    def logits(self, tokens: TokenizedTexts) -> np.ndarray:
        """fp32 logits [texts, classes] of the model as it is, on this rank, without dropout."""
        self.model.eval()
        with torch.inference_mode():
            parts = [
                self.model(pack([tokens[int(i)] for i in batch]).to(self._device)).float().cpu().numpy()
                for batch in plan_batches(tokens.lengths, self.config.max_batch_tokens, len(tokens))
            ]
        return np.concatenate(parts)

    def _train_epoch(self, epoch: int) -> float:
        """One pass in random order; returns the mean loss per text over all ranks."""
        self._wrapped.train()
        # Every epoch seeds its own dropout, so that one which is run again after a crash is the same. Ranks must not
        # drop the same units, or they would be correlated.
        torch.manual_seed((self.config.seed * 1009 + self._rank) * 1_000_003 + epoch)
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self._train))
        total = torch.zeros((), device=self._device)
        for start in range(0, len(order), self.config.batch_size):
            total += self._train_step(order[start : start + self.config.batch_size])
        if self._ranks > 1:
            dist.all_reduce(total)
        return float(total) / len(order)

    def _train_step(self, texts: np.ndarray) -> torch.Tensor:
        """One optimizer step on the texts at these indices; returns this rank's summed loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate(self._step)
        total = torch.zeros((), device=self._device)
        micro_batches = list(self._micro_batches(texts))
        for place, (batch, weight) in enumerate(micro_batches):
            last = place == len(micro_batches) - 1
            with contextlib.nullcontext() if last else self._without_sync(), self._autocast():
                logits = self._wrapped(pack([self._train.tokens[int(i)] for i in batch]).to(self._device))
                labels = torch.from_numpy(self._train.labels[batch]).to(self._device)
                loss = weight * functional.cross_entropy(
                    logits.float(),
                    labels,
                    self._class_weights,
                    reduction="sum",
                    label_smoothing=self.config.label_smoothing,
                )
                # DDP averages over ranks; the division by the step's texts must be over their sum.
                (loss * (self._ranks / len(texts))).backward()
            total += loss.detach()
        self._optimizer.clip_and_step()
        self._step += 1
        return total

    def _micro_batches(self, texts: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        """This rank's share of a step, under the token budget, with the weight of its loss."""
        share = texts[self._rank :: self._ranks]
        if not len(share):
            # A rank without texts in the last step must still take part in DDP's exchange, with zero gradients.
            yield texts[:1], 0.0
            return
        lengths = self._train.tokens.lengths
        for batch in plan_batches(lengths, self.config.max_batch_tokens, len(share), np.sort(share)):
            yield batch, 1.0

    def _validate(self) -> tuple[float, float, float, float]:
        """Loss, F1, accuracy and temperature of the validation split.

        Each rank computes a share and the counts are added up; the temperature is that of the rank's own share.
        """
        self.model.eval()
        classes, data = len(self._names), self._validation
        counts = np.zeros((classes, classes), dtype=np.int64)
        loss = 0.0
        share = np.argsort(data.tokens.lengths, kind="stable")[self._rank :: self._ranks]
        batches = plan_batches(data.tokens.lengths, self.config.max_batch_tokens, max(1, len(share)), share)
        found, of_labels = [np.empty((0, classes), dtype=np.float32)], [data.labels[:0]]
        with torch.inference_mode(), self._autocast():
            for batch in batches:
                logits = self.model(pack([data.tokens[int(i)] for i in batch]).to(self._device)).float().cpu()
                labels = data.labels[batch]
                loss += float(functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum"))
                counts += confusion_matrix(labels, logits.argmax(-1).numpy(), classes)
                found.append(logits.numpy())
                of_labels.append(labels)
        if self._ranks > 1:
            sums = torch.tensor([loss, *counts.flatten().tolist()], dtype=torch.float64, device=self._device)
            dist.all_reduce(sums)
            loss, counts = float(sums[0]), sums[1:].cpu().numpy().reshape(classes, classes).astype(np.int64)
        f1 = f1_from_confusion(counts, self._f1, self._names)
        # Rank 0 saves the model: its share, each second (third, ...) text by length, is a fair sample of the split.
        # Label smoothing, class weights and bf16 need nothing of their own: it is fitted to the logits that came of
        # them. (By how much class weights favour a class it cannot take back: no one factor can.)
        temperature = fit_temperature(np.concatenate(found), np.concatenate(of_labels))
        return loss / len(data), f1, float(np.trace(counts) / counts.sum()), temperature

    def _learning_rate(self, step: int) -> float:
        factor = learning_rate_factor(step, self._total_steps, self._warmup_steps, self.config.schedule)
        return self.config.learning_rate * factor

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _without_sync(self) -> contextlib.AbstractContextManager[object]:
        ddp = self._wrapped
        return ddp.no_sync() if isinstance(ddp, nn.parallel.DistributedDataParallel) else contextlib.nullcontext()


def _parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, object]]:
    """Weight decay for matrices only: biases and norms are left alone, as BERT's authors did."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
