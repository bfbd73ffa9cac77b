"""The settings under ``batch_score``: what to score, by which model, and what a worker holds."""

from __future__ import annotations

from pydantic import Field

from configs.section import CPU_BATCH_TOKENS, GPU_BATCH_TOKENS, Section


class BatchScoreConfig(Section):
    """Scoring the texts of files by a registered model."""

    input: list[str] = Field(
        default_factory=list,
        description="Absolute paths or URLs of the files to score, of folders of them, or with * for all that match: "
        ".parquet, .csv, .tsv, .jsonl or .ndjson, one format per job, the text formats also as .gz, .bz2, .xz or .zst.",
    )
    output: str | None = Field(
        None,
        description="Absolute path or URL of the folder for the predictions: new or empty, or that of the same job, "
        "which then goes on.",
    )
    model: str | None = Field(
        None,
        pattern=r"^[^/:@.%\"']{1,200}(@[A-Za-z0-9_-]{1,100}|/[0-9]{1,9})$",
        description="Registered model, NAME@ALIAS or NAME/VERSION; default: tracking.model_name and serving.alias.",
    )
    text_column: str = Field("text", min_length=1, description="Name of the column (or JSON key) with the text.")
    truncate: bool = Field(
        True,
        description="Whether a text over the model's max_length tokens or over serving.max_text_chars is cut; false: "
        "it is rejected.",
    )
    prediction_name: str = Field(
        "prediction",
        pattern=r"^[A-Za-z][A-Za-z0-9_]{0,99}$",
        description="What the columns that are added begin with (<name>_label, ...); in JSON Lines their key.",
    )
    rows_per_part: int = Field(
        1000, ge=1, le=10_000_000,
        description="Most rows in one part, count: what one worker scores and writes at once, and what a job that was "
        "stopped computes again at most per worker. A part also ends at 16 MB of text.",
    )  # fmt: skip
    workers: int | None = Field(
        None, ge=1, le=100_000,
        description="Processes that score, count; default: what the cluster holds now. More than it holds make an "
        "autoscaling cluster grow.",
    )  # fmt: skip
    cpus_per_worker: float = Field(
        1.0, gt=0.0, le=4096, description="CPU cores of one worker; a forward pass has as many threads."
    )
    gpus_per_worker: float = Field(0.0, ge=0.0, le=1, description="GPUs of one worker; a fraction shares one GPU.")
    max_batch_tokens: int | None = Field(
        None, ge=16, le=10_000_000,
        description="Most tokens in one forward pass, count; default: 512 on a processor, 16,384 on a GPU.",
    )  # fmt: skip

    @property
    def batch_tokens(self) -> int:
        """``max_batch_tokens``, or its default for what the workers run on."""
        return self.max_batch_tokens or (GPU_BATCH_TOKENS if self.gpus_per_worker else CPU_BATCH_TOKENS)
