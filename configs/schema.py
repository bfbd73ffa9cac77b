"""The one schema of every setting: data, model, training, search, gate, tracking, serving.

Each field says what it is, its unit and its bounds. Unknown keys are refused (``loading.py`` names the nearest valid
one) and settings that contradict each other are refused here, before anything starts.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["auto", "fp32", "bf16"]
ClassWeight = Annotated[float, Field(gt=0.0, le=1e6)]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class GeneratorConfig(Section):
    """The built-in generator of review-like labelled texts."""

    texts: int = Field(4000, ge=20, le=10_000_000, description="Texts generated for training and validation, count.")
    test_texts: int = Field(1000, ge=10, le=10_000_000, description="Texts generated for the test split, count.")
    label_noise: float = Field(0.03, ge=0.0, le=0.4, description="Share of texts whose label is flipped, 0 to 0.4.")
    task: Literal["sentiment", "topic_sentiment"] = Field(
        "sentiment", description="sentiment: 2 classes; topic_sentiment: 6, from film-negative to product-positive."
    )
    imbalance: float = Field(
        1.0, ge=1.0, le=10_000.0, description="Texts of the first class for each one of the last, with the classes "
        "between in equal ratios; 1: balanced."
    )  # fmt: skip
    seed: int = Field(7, ge=0, le=2**31 - 1, description="Seed of the generator; the same seed gives the same texts.")


class DataConfig(Section):
    """Where labelled texts come from and how they are split."""

    source: Literal["builtin", "hub", "aclimdb", "files"] = Field(
        "builtin",
        description="builtin: generated texts; hub: a Hugging Face dataset id; aclimdb: the unpacked IMDB archive; "
        "files: CSV, Parquet or JSON Lines files.",
    )
    hub_id: str | None = Field(None, description="Hugging Face dataset id, with source hub. Example: stanfordnlp/imdb.")
    hub_config: str | None = Field(None, description="Configuration name of the hub dataset, if it has several.")
    hub_revision: str | None = Field(None, description="Git revision of the hub dataset: pin it for repeatable runs.")
    path: str | None = Field(None, description="Folder that holds train/ and test/ of aclImdb, with source aclimdb.")
    train: list[str] | None = Field(
        None, min_length=1, description="Paths or fsspec URLs of the training files (.csv .parquet .jsonl), files only."
    )
    test: list[str] | None = Field(
        None, min_length=1, description="Paths or fsspec URLs of the test files; without them test_fraction applies."
    )
    text_column: str = Field("text", min_length=1, description="Name of the column with the text.")
    label_column: str = Field("label", min_length=1, description="Name of the column with the label (name or id).")
    id_column: str | None = Field(None, description="Name of the column with a unique id; default: a content hash.")
    label_names: list[str] | None = Field(
        None, min_length=2, description="Class names in the order of their ids; default: from the source, else sorted."
    )
    positive_label: str | None = Field(
        None,
        description="Class whose F1 is measured when there are two; default: the class with id 1 for integer labels, "
        "else the one named 'positive'.",
    )
    validation_fraction: float = Field(0.1, gt=0.0, le=0.5, description="Share of train held out for validation.")
    test_fraction: float = Field(
        0.2, gt=0.0, le=0.5, description="Share that becomes the test split where the source has none, by content hash."
    )
    max_train_texts: int | None = Field(None, ge=4, description="Use at most this many training texts, stratified.")
    max_validation_texts: int | None = Field(None, ge=2, description="Use at most this many validation texts.")
    max_test_texts: int | None = Field(None, ge=2, description="Use at most this many test texts, stratified.")
    empty_texts: Literal["error", "drop"] = Field("error", description="What an empty text does: stop, or be dropped.")
    seed: int = Field(13, ge=0, le=2**31 - 1, description="Salt of the hash that splits and samples rows.")
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig, description="Settings of source builtin.")

    @model_validator(mode="after")
    def _source_is_complete(self) -> DataConfig:
        needed = {"hub": "hub_id", "aclimdb": "path", "files": "train"}
        for source, field in needed.items():
            given = getattr(self, field) is not None
            if source == self.source and not given:
                raise ValueError(f"data.source is '{source}': set data.{field}")
            if source != self.source and given:
                raise ValueError(
                    f"data.{field} is for data.source '{source}', found source '{self.source}': "
                    f"set data.source={source} or remove data.{field}"
                )
        if self.source != "files" and self.test is not None:
            raise ValueError(f"data.test is for data.source 'files', found source '{self.source}': remove data.test")
        if self.label_names and len(set(self.label_names)) != len(self.label_names):
            raise ValueError(f"data.label_names has a name twice: {self.label_names}")
        if self.label_names and self.positive_label and self.positive_label not in self.label_names:
            raise ValueError(f"data.positive_label is '{self.positive_label}', expected one of {self.label_names}")
        return self


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


class LogUniform(Section):
    """A float drawn uniformly in the logarithm."""

    type: Literal["loguniform"]
    low: float = Field(gt=0.0, description="Lowest value.")
    high: float = Field(gt=0.0, description="Highest value.")


class Uniform(Section):
    """A float drawn uniformly."""

    type: Literal["uniform"]
    low: float = Field(description="Lowest value.")
    high: float = Field(description="Highest value.")


class Int(Section):
    """A whole number drawn uniformly, both ends included."""

    type: Literal["int"]
    low: int = Field(description="Lowest value.")
    high: int = Field(description="Highest value.")


class Choice(Section):
    """One of the listed values."""

    type: Literal["choice"]
    values: list[bool | int | float | str] = Field(min_length=1, description="The values to choose from.")


Dimension = Annotated[LogUniform | Uniform | Int | Choice, Field(discriminator="type")]


class WarmStart(Section):
    """Earlier trials that the sampler learns from before the first trial: those of one search, or of an experiment."""

    experiment: str | None = Field(None, min_length=1, description="Name of the MLflow experiment they are in.")
    parent_run: str | None = Field(None, min_length=1, description="Parent run (id) of the search they belong to.")
    top_k: int = Field(50, ge=1, le=10_000, description="Use at most this many, those with the best F1, count.")

    @model_validator(mode="after")
    def _exactly_one_source(self) -> WarmStart:
        if (self.experiment is None) == (self.parent_run is None):
            found = "neither" if self.experiment is None else "both"
            raise ValueError(
                f"set exactly one of search.warm_start.experiment and search.warm_start.parent_run, found {found}"
            )
        return self


Objective = Literal["f1 max", "parameters min", "latency min"]

# The options of every sampler and scheduler, with their defaults; None leaves the choice to Optuna.
_SAMPLERS: dict[str, dict[str, Any]] = {
    "tpe": {"startup_trials": 4, "candidates": 24},
    "random": {},
    "cmaes": {"startup_trials": 1, "population": None},
    "gp": {"startup_trials": 4},
}
_SCHEDULERS: dict[str, dict[str, Any]] = {
    "asha": {"grace_epochs": 1, "reduction_factor": 3},
    "median": {"grace_epochs": 1, "minimum_trials": 3},
    "none": {},
}

_FIXED_IN_A_SEARCH = (
    "model.family",
    "model.checkpoint",
    "model.revision",
    *(f"model.{sizes}.vocabulary_size" for sizes in ("architecture", "avgnet", "cnet", "rnn")),
)


class SearchConfig(Section):
    """The hyperparameter search."""

    trials: int = Field(10, ge=1, le=100_000, description="Trials to run, count.")
    space: dict[str, Dimension] = Field(
        default_factory=dict, description="Search space: dotted setting (training.* or model.*) to its dimension."
    )
    objectives: list[Objective] = Field(
        ["f1 max"],
        min_length=1,
        description="What to search for, f1 max first: validation F1, trainable parameters (count), latency of 8 texts "
        "(ms). More than one gives a Pareto front.",
    )
    max_f1_drop: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="With several objectives, the gate gets the trial that is best by the second of them among those "
        "whose F1 is at most this far below the highest; 0: the highest F1.",
    )
    warm_start: WarmStart | None = Field(None, description="Earlier trials to begin with; default: none.")
    max_concurrent: int | None = Field(
        None, ge=1, description="Trials at the same time, count; default: what the cluster's resources hold."
    )
    workers_per_trial: int | None = Field(
        None, ge=1, le=1024, description="Data-parallel workers of a trial; default: one per whole GPU, at least 1."
    )
    cpus_per_trial: float = Field(1.0, gt=0.0, le=4096, description="CPU cores of a trial, over all its workers.")
    gpus_per_trial: float = Field(0.0, ge=0.0, le=1024, description="GPUs of a trial; a fraction shares one GPU.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Seed of the sampler.")
    sampler: Literal["tpe", "random", "cmaes", "gp"] = Field(
        "tpe",
        description="Who proposes parameters: tpe, random, cmaes (numbers only), or gp (a Gaussian process, for which "
        "the driver loads torch).",
    )
    startup_trials: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Trials drawn at random before the sampler models the results, count; default: 4, cmaes 1.",
    )
    candidates: int | None = Field(
        None, ge=1, le=100_000, description="Points that tpe weighs for every trial, count; default: 24."
    )
    population: int | None = Field(
        None, ge=2, le=10_000, description="Trials in a generation of cmaes, count; default: 4 + 3 ln(dimensions)."
    )
    scheduler: Literal["asha", "median", "none"] = Field(
        "asha",
        description="Who stops weak trials early: asha (successive halving), median (below the median of the others' "
        "running means), or none.",
    )
    grace_epochs: int | None = Field(
        None, ge=1, le=1000, description="Epochs that asha and median give every trial, count; default: 1."
    )
    reduction_factor: int | None = Field(
        None, ge=2, le=16, description="asha keeps about one in this many trials per rung; default: 3."
    )
    minimum_trials: int | None = Field(
        None, ge=1, le=10_000, description="Trials that must have come as far before median stops one; default: 3."
    )
    max_failures: int = Field(1, ge=0, le=100, description="Times a failed trial is started again, count.")
    time_budget_s: float | None = Field(
        None,
        gt=0.0,
        description="A command's trials end after this many seconds, best so far kept; default: never.",
    )
    cluster_wait_s: float = Field(
        0.0, ge=0.0, description="Longest wait at the start for a cluster, which is asked to grow, to hold a trial, s."
    )
    placement_timeout_s: float = Field(
        3600.0, ge=60.0, description="Longest wait of a started trial for a place on the cluster, seconds."
    )
    keep_best: int = Field(3, ge=1, description="Trials whose best model stays in the storage, count; others' go.")
    storage: str | None = Field(
        None, description="Absolute path or URL for checkpoints and journals; default: <home>/searches."
    )
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$", description="Name of the search; default: made at start."
    )

    @model_validator(mode="after")
    def _resources_and_space(self) -> SearchConfig:
        for key, dimension in self.space.items():
            if not isinstance(dimension, Choice) and dimension.low > dimension.high:
                raise ValueError(f"search.space.{key}: low {dimension.low} is above high {dimension.high}")
        gpus, workers = self.gpus_per_trial, self.workers
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"search.gpus_per_trial is {gpus}: above 1 it must be a whole number")
        if workers > 1 and 0 < gpus < workers:
            raise ValueError(
                f"search.gpus_per_trial {gpus:g} is less than one GPU for each of workers_per_trial {workers}: "
                "workers of one trial cannot share a GPU"
            )
        if gpus > 1 and int(gpus) % workers:
            raise ValueError(f"search.gpus_per_trial {gpus:g} cannot be shared evenly by workers_per_trial {workers}")
        return self

    @model_validator(mode="after")
    def _options_belong(self) -> SearchConfig:
        for kind, choices in (("sampler", _SAMPLERS), ("scheduler", _SCHEDULERS)):
            chosen = getattr(self, kind)
            for option in {option for options in choices.values() for option in options} - set(choices[chosen]):
                if getattr(self, option) is not None:
                    owners = [name for name, options in choices.items() if option in options]
                    raise ValueError(
                        f"search.{option} is for {kind} {' or '.join(owners)}, found {kind} '{chosen}': remove it or "
                        f"set search.{kind}={owners[0]}"
                    )
        numbers = [d for d in self.space.values() if not isinstance(d, Choice) and d.low < d.high]
        choices_of = [key for key, dimension in self.space.items() if isinstance(dimension, Choice)]
        if self.sampler == "cmaes" and self.space and (choices_of or len(numbers) < 2):
            found = f"choice {', '.join(choices_of)}" if choices_of else f"{len(numbers)} of them"
            raise ValueError(
                f"search.sampler cmaes searches two or more dimensions of numbers, found {found}: use sampler tpe or gp"
            )
        return self

    @model_validator(mode="after")
    def _objectives_agree(self) -> SearchConfig:
        several = len(self.objectives) > 1
        if self.objectives[0] != "f1 max":
            raise ValueError(
                f"search.objectives begins with '{self.objectives[0]}': put 'f1 max' first, because schedulers stop "
                "and the gate decides by F1"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"search.objectives has one twice: {self.objectives}")
        if self.max_f1_drop and not several:
            raise ValueError(
                f"search.max_f1_drop is {self.max_f1_drop} with one objective: remove it, or add 'parameters min' or "
                "'latency min' to search.objectives"
            )
        if self.sampler == "cmaes" and several:
            raise ValueError(
                f"search.sampler cmaes has one objective, found {len(self.objectives)}: use sampler tpe or gp"
            )
        if self.sampler == "random" and self.warm_start:
            raise ValueError(
                "search.warm_start is for samplers that learn, found sampler 'random': remove it or use sampler tpe"
            )
        return self

    @property
    def sampler_options(self) -> dict[str, Any]:
        """The chosen sampler's options, as set or their defaults."""
        return self._set_over(_SAMPLERS[self.sampler])

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """The chosen scheduler's options, as set or their defaults."""
        return self._set_over(_SCHEDULERS[self.scheduler])

    def _set_over(self, defaults: dict[str, Any]) -> dict[str, Any]:
        return {key: value if getattr(self, key) is None else getattr(self, key) for key, value in defaults.items()}

    @property
    def workers(self) -> int:
        """Data-parallel workers of one trial."""
        return self.workers_per_trial or max(1, math.floor(self.gpus_per_trial))


class GateConfig(Section):
    """The promotion gate."""

    minimum_f1: float = Field(
        0.85, ge=0.0, le=1.0, description="F1 that a candidate needs while there is no production model yet."
    )


class TrackingConfig(Section):
    """MLflow: where runs, models and the registry are."""

    uri: str | None = Field(
        None,
        description="MLflow address: http(s)://, postgresql:// or sqlite:/// with an absolute path; default: "
        "MLFLOW_TRACKING_URI, else SQLite in <home>.",
    )
    experiment: str = Field("trialgate", min_length=1, max_length=200, description="Name of the MLflow experiment.")
    model_name: str = Field(
        "trialgate-classifier",
        pattern=r"^[^/:@.%\"']{1,200}$",
        description="Name of the registered model. No / : @ . % or quotes.",
    )
    request_timeout_s: float = Field(10.0, gt=0.0, le=600.0, description="Time-out of one MLflow request, seconds.")
    max_retries: int = Field(2, ge=0, le=20, description="Times a failed MLflow request is sent again, count.")


class ServingConfig(Section):
    """The HTTP service."""

    precision: Precision = Field("auto", description="Precision of the forward pass, in serving and in the gate.")
    max_batch_tokens: int = Field(
        16_384, ge=16, le=10_000_000, description="Most tokens in one forward pass, count (their sum: no padding)."
    )
    max_batch_texts: int = Field(64, ge=1, le=65536, description="Most texts in one forward pass, count.")
    max_concurrent_texts: int = Field(
        512, ge=1, le=1_000_000, description="Texts that one classifier replica admits at once, count; beyond: 429."
    )
    max_client_batch_size: int = Field(32, ge=1, le=65536, description="Most texts in one /batch_predict, count.")
    max_text_chars: int = Field(20_000, ge=1, le=10_000_000, description="Longest text, characters; beyond: 422.")
    max_body_bytes: int = Field(2_000_000, ge=100, le=1_000_000_000, description="Largest request body, bytes.")
    deadline_ms: int = Field(10_000, ge=1, le=3_600_000, description="Longest time from first byte to answer, ms.")
    alias: str = Field("production", min_length=1, max_length=100, description="Registry alias that is served.")
    poll_interval_s: float = Field(2.0, gt=0.0, le=3600.0, description="Time between looks at the alias, seconds.")
    cache_dir: str | None = Field(None, description="Absolute folder for downloaded models; default: <home>/models.")
    gateway_replicas: int = Field(1, ge=1, le=1000, description="Replicas of the HTTP gateway, count.")
    min_replicas: int = Field(1, ge=1, le=10_000, description="Fewest classifier replicas, count.")
    max_replicas: int = Field(1, ge=1, le=10_000, description="Most classifier replicas, count.")
    target_ongoing_requests: float = Field(
        32.0, gt=0.0, le=100_000, description="Requests in flight per replica that autoscaling aims at, count."
    )
    cpus_per_replica: float = Field(1.0, ge=0.0, le=4096, description="CPU cores of one classifier replica.")
    gpus_per_replica: float = Field(0.0, ge=0.0, le=64, description="GPUs of one classifier replica; fractions share.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the quickstart's service; serve.yaml has its own.")
    drain_timeout_s: float = Field(5.0, ge=0.0, le=600.0, description="Time given to running requests at the end, s.")

    @model_validator(mode="after")
    def _limits_agree(self) -> ServingConfig:
        if self.max_client_batch_size > self.max_concurrent_texts:
            raise ValueError(
                f"serving.max_client_batch_size {self.max_client_batch_size} is above max_concurrent_texts "
                f"{self.max_concurrent_texts}: such a batch could never be admitted"
            )
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"serving.min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self


class Settings(Section):
    """Everything. A command reads the sections that it needs."""

    home: str | None = Field(
        None, description="Absolute folder for everything written locally; default: .trialgate where the command runs."
    )
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=lambda: ModelConfig(architecture=Architecture()))
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    search: SearchConfig = Field(default_factory=SearchConfig)
    gate: GateConfig = Field(default_factory=GateConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    serving: ServingConfig = Field(default_factory=ServingConfig)
    baselines: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Models that ray_jobs.baselines compares: a name of each, and the settings (model.*, training.*, "
        "search.*, data.max_train_texts) in which its search differs from this one.",
    )

    @model_validator(mode="after")
    def _sections_agree(self) -> Settings:
        if self.training.max_batch_tokens < self.model.max_length:
            raise ValueError(
                f"training.max_batch_tokens {self.training.max_batch_tokens} is below model.max_length "
                f"{self.model.max_length}: one text must fit into a batch"
            )
        if self.serving.max_batch_tokens < self.model.max_length:
            raise ValueError(
                f"serving.max_batch_tokens {self.serving.max_batch_tokens} is below model.max_length "
                f"{self.model.max_length}: one text must fit into a batch"
            )
        if self.training.batch_size < self.search.workers:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} is below the {self.search.workers} "
                "workers of a trial: each needs at least one text per step"
            )
        if self.search.grace_epochs is not None and self.search.grace_epochs > self.training.epochs:
            raise ValueError(
                f"search.grace_epochs {self.search.grace_epochs} is above training.epochs "
                f"{self.training.epochs}: no trial would ever be stopped; lower it or use scheduler none"
            )
        self._check_warmup()
        for key, dimension in self.search.space.items():
            if key in _FIXED_IN_A_SEARCH:
                raise ValueError(f"search.space.{key}: it cannot be searched, because texts are tokenised once for all "
                                 "trials; run one search for each value")  # fmt: skip
            ends = dimension.values if isinstance(dimension, Choice) else [dimension.low, dimension.high]
            for value in ends:
                try:
                    self.with_parameters({key: value})
                except ValueError as error:
                    raise ValueError(
                        f"search.space.{key}: {value!r} is not a valid value: {_first_line(error)}"
                    ) from None
        return self

    def _check_warmup(self) -> None:
        steps, training, data = self.training.warmup_steps, self.training, self.data
        texts = data.max_train_texts or (data.generator.texts if data.source == "builtin" else None)
        if steps and texts and steps > training.epochs * math.ceil(texts / training.batch_size):
            raise ValueError(
                f"training.warmup_steps {steps} is longer than training: {training.epochs} epochs of {texts} texts in "
                f"batches of {training.batch_size} are {training.epochs * math.ceil(texts / training.batch_size)} steps"
            )
        if training.warmup_ratio == 1.0 and training.schedule != "constant":
            raise ValueError(
                "training.warmup_ratio 1.0 leaves no step for the decay: lower it or use schedule constant"
            )

    def with_parameters(self, parameters: dict[str, Any]) -> Settings:
        """These settings with a trial's ``parameters`` (dotted name to value) put in, validated again."""
        values = self.model_dump()
        values["search"]["space"] = {}
        for key, value in parameters.items():
            section, _, field = key.partition(".")
            if section not in ("training", "model") or not field:
                raise ValueError(f"only training.* and model.* can be searched, found '{key}'")
            target = values[section]
            *parents, last = field.split(".")
            for parent in parents:
                target = target.get(parent)
                if not isinstance(target, dict):
                    raise ValueError(f"'{key}' is not a setting")
            if last not in target:
                raise ValueError(f"'{key}' is not a setting; {section} has {', '.join(sorted(target))}")
            target[last] = value
        return Settings.model_validate(values)


def _first_line(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    first = errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first["loc"] else first["msg"]
