"""The settings under ``model`` and ``training``: what is trained, and one training run of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from configs.section import Precision, Section

ClassWeight = Annotated[float, Field(gt=0.0, le=1e6)]


class Architecture(Section):
    """A DistilBERT trained from scratch, with a WordPiece vocabulary learnt from the training split."""

    layers: int = Field(2, ge=1, le=48, description="Transformer layers, count.")
    width: int = Field(128, ge=8, le=8192, description="Hidden width, units.")
    heads: int = Field(4, ge=1, le=128, description="Attention heads, count; must divide width.")
    feed_forward_width: int | None = Field(None, ge=8, le=65536, description="Inner width; default 4 x width, units.")
    vocabulary_size: int = Field(4000, ge=100, le=500_000, description="Most WordPiece entries to learn, count.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Architecture:
        if self.width % self.heads:
            raise ValueError(f"model.architecture.heads is {self.heads}, which does not divide width {self.width}")
        return self


class AvgNet(Section):
    """An averaging network: the mean of the embeddings of a text's tokens and n-grams, and a linear classifier."""

    width: int = Field(64, ge=1, le=8192, description="Embedding width, units.")
    ngrams: int = Field(
        2, ge=1, le=5, description="Longest run of tokens with an embedding of its own; 1: words alone."
    )
    buckets: int = Field(2**17, ge=2, le=2**26, description="Embeddings that n-grams share by their hash, count.")
    vocabulary_size: int = Field(20_000, ge=100, le=500_000, description="Most WordPiece entries to learn, count.")


class CNet(Section):
    """A convolutional network: filters over windows of tokens, the maximum of each, and a linear classifier."""

    width: int = Field(128, ge=1, le=8192, description="Embedding width, units.")
    filters: int = Field(100, ge=1, le=8192, description="Filters of each window size, count.")
    narrowest_window: int = Field(3, ge=1, le=32, description="Smallest window of a filter, tokens.")
    widest_window: int = Field(5, ge=1, le=32, description="Largest window of a filter, tokens.")
    vocabulary_size: int = Field(20_000, ge=100, le=500_000, description="Most WordPiece entries to learn, count.")

    @model_validator(mode="after")
    def _windows_are_a_range(self) -> CNet:
        if self.narrowest_window > self.widest_window:
            raise ValueError(
                f"model.cnet.narrowest_window {self.narrowest_window} is above widest_window {self.widest_window}"
            )
        return self


class Rnn(Section):
    """A recurrent network: a bidirectional LSTM, the maximum of each unit, and a linear classifier."""

    width: int = Field(128, ge=1, le=8192, description="Embedding width, units.")
    hidden_width: int = Field(128, ge=1, le=8192, description="LSTM units of each direction, count.")
    layers: int = Field(1, ge=1, le=16, description="LSTM layers, count.")
    vocabulary_size: int = Field(20_000, ge=100, le=500_000, description="Most WordPiece entries to learn, count.")


class ModelConfig(Section):
    """What is trained: a model family, and where its weights come from.

    DistilBERT: a checkpoint to fine-tune, or an architecture from scratch (exactly one). The other families are always
    trained from scratch, with the sizes of their own section.
    """

    family: Literal["distilbert", "avgnet", "cnet", "rnn"] = Field(
        "distilbert", description="distilbert; or a small network: avgnet averages, cnet convolves, rnn is recurrent."
    )
    checkpoint: str | None = Field(None, description="Hub id or absolute folder with DistilBERT weights (safetensors).")
    revision: str = Field("main", min_length=1, description="Git revision of a hub checkpoint: pin it to repeat runs.")
    architecture: Architecture | None = Field(None, description="Sizes of a DistilBERT trained from scratch.")
    avgnet: AvgNet | None = Field(None, description="Sizes of family avgnet.")
    cnet: CNet | None = Field(None, description="Sizes of family cnet.")
    rnn: Rnn | None = Field(None, description="Sizes of family rnn.")
    max_length: int = Field(256, ge=4, le=8192, description="Longest text, tokens with [CLS] and [SEP]; longer is cut.")
    dropout: float = Field(
        0.1, ge=0.0, lt=1.0, description="Dropout of embeddings and between layers (avgnet: of tokens), probability."
    )
    attention_dropout: float = Field(
        0.1, ge=0.0, lt=1.0, description="Dropout of attention weights (distilbert), probability."
    )
    classifier_dropout: float = Field(0.2, ge=0.0, lt=1.0, description="Dropout before the classifier, probability.")

    @model_validator(mode="before")
    @classmethod
    def _default_sizes(cls, values: Any) -> Any:
        if isinstance(values, dict) and (family := values.get("family")) in ("avgnet", "cnet", "rnn"):
            return values | {family: values.get(family) or {}}
        return values

    @model_validator(mode="after")
    def _one_family(self) -> ModelConfig:
        family_of = {"checkpoint": "distilbert", "architecture": "distilbert", "avgnet": "avgnet", "cnet": "cnet",
                     "rnn": "rnn"}  # fmt: skip
        for field, family in family_of.items():
            if family != self.family and getattr(self, field) is not None:
                raise ValueError(
                    f"model.{field} is for model.family '{family}', found family '{self.family}': set "
                    f"model.family={family} or remove model.{field}"
                )
        if self.family == "distilbert":
            if (self.checkpoint is None) == (self.architecture is None):
                found = "neither" if self.checkpoint is None else "both"
                raise ValueError(f"set exactly one of model.checkpoint and model.architecture, found {found}")
        elif self.attention_dropout != type(self).model_fields["attention_dropout"].default:
            raise ValueError(f"model.attention_dropout is for family distilbert, found '{self.family}': remove it")
        return self

    @property
    def sizes(self) -> Architecture | AvgNet | CNet | Rnn | None:
        """The sizes of a model trained from scratch; None for a checkpoint."""
        return self.architecture or self.avgnet or self.cnet or self.rnn


class TrainingConfig(Section):
    """One training run."""

    epochs: int = Field(3, ge=1, le=1000, description="Most passes over the training split, count.")
    batch_size: int = Field(32, ge=1, le=65536, description="Texts per optimizer step over all workers, count.")
    max_batch_tokens: int = Field(
        8192, ge=16, le=10_000_000, description="Most tokens in one packed forward pass of a worker, count."
    )
    learning_rate: float = Field(5e-5, gt=0.0, le=1.0, description="Peak learning rate of AdamW.")
    weight_decay: float = Field(0.01, ge=0.0, le=1.0, description="Decoupled weight decay, not on biases and norms.")
    warmup_ratio: float = Field(0.1, ge=0.0, le=1.0, description="Share of all steps with rising rate, 0 to 1.")
    warmup_steps: int | None = Field(None, ge=0, description="Steps with rising rate, count; overrides warmup_ratio.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Decay after the warm-up.")
    max_grad_norm: float = Field(1.0, gt=0.0, le=1e6, description="Gradients are clipped to this L2 norm.")
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5, description="Probability mass spread over all classes.")
    class_weights: Literal["none", "balanced"] | dict[str, ClassWeight] = Field(
        "none",
        description="Factor on the loss of each class's texts. balanced: texts / (classes * texts of the class), so "
        "that all classes count the same; or label to factor, where a label that is not named keeps 1.",
    )
    precision: Precision = Field("auto", description="auto: bf16 autocast where the hardware has it, else fp32.")
    early_stop_patience: int | None = Field(
        None, ge=1, description="Stop after this many epochs without a better validation F1, count; default: never."
    )
    seed: int = Field(42, ge=0, le=2**31 - 1, description="Seed of weights, order and dropout.")
