"""The one schema of every setting: ``Settings``, with the sections that tracking and serving read.

Those of data, model and training, search, and gate stand in files beside this one. Each field says what it is,
its unit and its bounds. Unknown keys are refused (``loading.py`` names the nearest valid one) and settings that
contradict each other are refused here, before anything starts.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from configs.batch_score import BatchScoreConfig
from configs.data import DataConfig
from configs.gate import GateConfig
from configs.model import Architecture, ModelConfig, TrainingConfig
from configs.search import Choice, SearchConfig
from configs.section import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, Section, ServingPrecision

_FIXED_IN_A_SEARCH = (
    "model.family",
    "model.checkpoint",
    "model.revision",
    *(f"model.{sizes}.vocabulary_size" for sizes in ("architecture", "avgnet", "cnet", "rnn")),
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

    precision: ServingPrecision = Field(
        "auto",
        description="Precision of the forward pass, in serving and in the gate. auto: bf16 where the hardware has it, "
        "else fp32. int8: DistilBERT on processors with AVX512-VNNI, faster on some of them (docs/serving.md) and a "
        "little less exact.",
    )
    max_batch_tokens: int | None = Field(
        None, ge=16, le=10_000_000,
        description="Most tokens in one forward pass, count (their sum: no padding); a longer text goes alone. "
        "Default: 512 on a processor, where more do not go faster, and 16,384 on a GPU.",
    )  # fmt: skip
    max_batch_texts: int = Field(64, ge=1, le=65536, description="Most texts in one forward pass, count.")
    max_concurrent_texts: int = Field(
        512, ge=1, le=1_000_000, description="Texts that one classifier replica admits at once, count; beyond: 429."
    )
    max_queue_ms: int = Field(
        2000, ge=1, le=3_600_000,
        description="Longest estimated wait for a forward pass with which a request is still admitted, ms; else 429.",
    )  # fmt: skip
    max_client_batch_size: int = Field(32, ge=1, le=65536, description="Most texts in one /batch_predict, count.")
    max_text_chars: int = Field(20_000, ge=1, le=10_000_000, description="Longest text, characters; beyond: 422.")
    max_body_bytes: int = Field(2_000_000, ge=100, le=1_000_000_000, description="Largest request body, bytes.")
    deadline_ms: int = Field(10_000, ge=1, le=3_600_000, description="Longest time from first byte to answer, ms.")
    explain_enabled: bool = Field(True, description="Whether there is a route /explain.")
    explain_max_tokens: int = Field(
        256,
        ge=3,
        le=1_000_000,
        description="Longest text that is explained, tokens as the model reads it; beyond: 422.",
    )
    explain_steps: int = Field(
        32, ge=1, le=1000, description="Gradients that an explanation takes, count; more make its sum more exact."
    )
    explain_deadline_ms: int = Field(
        20_000, ge=1, le=3_600_000, description="Longest time from first byte to answer of /explain, ms."
    )
    explain_max_concurrent: int = Field(
        4, ge=1, le=10_000,
        description="Explanations that one replica admits at once, count; one is computed, others wait; beyond: 429.",
    )  # fmt: skip
    alias: str = Field("production", min_length=1, max_length=100, description="Registry alias that is served.")
    poll_interval_s: float = Field(2.0, gt=0.0, le=3600.0, description="Time between looks at the alias, seconds.")
    cache_dir: str | None = Field(None, description="Absolute folder for downloaded models; default: <home>/models.")
    gateway_replicas: int = Field(
        0, ge=0, le=1000,
        description="Replicas that do the HTTP work alone, count; 0: the classifiers answer HTTP themselves (faster).",
    )  # fmt: skip
    min_replicas: int = Field(1, ge=1, le=10_000, description="Fewest classifier replicas, count.")
    max_replicas: int = Field(1, ge=1, le=10_000, description="Most classifier replicas, count.")
    target_ongoing_requests: float = Field(
        32.0, gt=0.0, le=100_000,
        description="Work per replica that autoscaling aims at: requests admitted and not answered, count; one with n "
        "texts counts n times.",
    )  # fmt: skip
    upscale_delay_s: float = Field(
        10.0, ge=0.0, le=86_400, description="How long more replicas must be wanted before they are started, seconds."
    )
    downscale_delay_s: float = Field(
        300.0, ge=0.0, le=86_400, description="How long fewer replicas must do before any is stopped, seconds."
    )
    max_surge_percent: int = Field(
        25, ge=0, le=100,
        description="Replicas that a rolling redeploy starts beyond their number before it stops old ones, %, at least "
        "one: there must be free CPUs or GPUs for it. 0: old ones stop first, and a single replica leaves a gap.",
    )  # fmt: skip
    cpus_per_replica: float = Field(1.0, ge=0.0, le=4096, description="CPU cores of one classifier replica.")
    gpus_per_replica: float = Field(0.0, ge=0.0, le=64, description="GPUs of one classifier replica; fractions share.")
    api_key_digests: list[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=list,
        description="SHA-256 digests, in hex, of API keys that are accepted beside those of SERVE_API_KEYS. Of long "
        "random keys only: others can be guessed from their digest.",
    )
    access_log: bool = Field(True, description="One line of JSON per HTTP request, in the log of the replica.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the quickstart's service; serve.yaml has its own.")
    drain_timeout_s: float = Field(5.0, ge=0.0, le=600.0, description="Time given to running requests at the end, s.")

    @property
    def batch_tokens(self) -> int:
        """``max_batch_tokens``, or its default for what the replicas run on."""
        if self.max_batch_tokens is not None:
            return self.max_batch_tokens
        return GPU_BATCH_TOKENS if self.gpus_per_replica > 0 else CPU_BATCH_TOKENS

    @model_validator(mode="after")
    def _limits_agree(self) -> ServingConfig:
        if self.max_client_batch_size > self.max_concurrent_texts:
            raise ValueError(
                f"serving.max_client_batch_size {self.max_client_batch_size} is above max_concurrent_texts "
                f"{self.max_concurrent_texts}: such a batch could never be admitted"
            )
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"serving.min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        if self.precision == "int8" and self.gpus_per_replica > 0:
            raise ValueError(
                f"serving.precision int8 is computed on processors, and gpus_per_replica is {self.gpus_per_replica}: "
                "set that to 0, or precision to auto"
            )
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
    batch_score: BatchScoreConfig = Field(default_factory=BatchScoreConfig)
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
        if self.serving.max_batch_tokens is not None and self.serving.max_batch_tokens < self.model.max_length:
            raise ValueError(
                f"serving.max_batch_tokens {self.serving.max_batch_tokens} is below model.max_length "
                f"{self.model.max_length}: one text must fit into a batch"
            )
        if self.serving.precision == "int8" and self.batch_score.gpus_per_worker > 0:
            raise ValueError(
                "serving.precision int8 is computed on processors, and batch_score.gpus_per_worker is "
                f"{self.batch_score.gpus_per_worker}: set that to 0, or precision to auto"
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

    def largest(self, key: str) -> int:
        """The largest value that any trial of the search may have for ``key``, a whole number of model or training."""
        dimension = self.search.space.get(key)
        if dimension is None:
            section, _, field = key.partition(".")
            return int(getattr(getattr(self, section), field))
        return int(max(map(float, dimension.values)) if isinstance(dimension, Choice) else dimension.high)

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
