"""The settings under ``data``: where labelled texts come from and how they are split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from configs.section import Section


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
    slice_columns: list[str] = Field(
        [],
        description="Columns of the test split, each with at most 50 different values: the gate scores the texts of "
        "each value apart too. For sources files, hub, and builtin, which has one: topic.",
    )
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
        self._check_slices()
        if self.label_names and len(set(self.label_names)) != len(self.label_names):
            raise ValueError(f"data.label_names has a name twice: {self.label_names}")
        if self.label_names and self.positive_label and self.positive_label not in self.label_names:
            raise ValueError(f"data.positive_label is '{self.positive_label}', expected one of {self.label_names}")
        return self

    def _check_slices(self) -> None:
        columns = self.slice_columns
        if self.source == "aclimdb" and columns:
            raise ValueError("data.slice_columns is for files with columns, which aclimdb has not: remove it")
        if self.source == "builtin" and not set(columns) <= {"topic"}:
            raise ValueError(f"data.slice_columns is {columns}, but the built-in data have one column for it: topic")
        if len(set(columns)) != len(columns):
            raise ValueError(f"data.slice_columns has a column twice: {columns}")
        if taken := {self.text_column, self.label_column, self.id_column} & set(columns):
            raise ValueError(
                f"data.slice_columns has '{taken.pop()}', which is the text, the label or the id: remove it"
            )
