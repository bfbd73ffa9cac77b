"""Texts to token ids, once for all trials of a search, and what only they can tell to be wrong with the settings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from configs.loading import ConfigError
from configs.model import TrainingConfig
from configs.schema import Settings
from ray_jobs.command import say
from ray_jobs.data.prepare import Dataset, Split
from ray_jobs.trial import SearchData

if TYPE_CHECKING:
    from serve_app.inference.checkpoint import Checkpoint
    from serve_app.inference.tokenizing import TextTokenizer


def tokenise(settings: Settings, dataset: Dataset) -> SearchData:
    """The splits as token ids, tokenised once for all trials, with the tokenizer's files."""
    from ray_jobs.training import LabelledTokens, class_weights
    from serve_app.inference.tokenizing import learn_wordpiece, tokenize

    model, checkpoint = settings.model, None
    longest = settings.largest("model.max_length")
    if model.checkpoint is not None:
        checkpoint, tokenizer = open_checkpoint(model.checkpoint, model.revision, longest)
    else:
        assert model.sizes is not None
        say("learning the vocabulary from the training split")
        tokenizer = learn_wordpiece(dataset.train.texts, model.sizes.vocabulary_size, longest)

    def labelled(split: Split) -> LabelledTokens:
        return LabelledTokens(tokenize(tokenizer, split.texts, longest).tokens, split.labels)

    train, validation = labelled(dataset.train), labelled(dataset.validation)
    check_warmup(settings.training, len(train))
    try:
        class_weights(settings.training.class_weights, train.labels, dataset.label_names)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    say(f"tokenised {len(train) + len(validation):,} texts: {train.tokens.lengths.mean():.0f} tokens on average")
    return SearchData(
        train, validation, tokenizer.files, tokenizer.vocabulary_size, checkpoint, dataset.label_names, dataset.f1.key
    )


def check_warmup(training: TrainingConfig, texts: int) -> None:
    """Refuses a warm-up that is longer than training; the schema knows the number of texts for some sources only."""
    steps = training.epochs * math.ceil(texts / training.batch_size)
    if training.warmup_steps is not None and training.warmup_steps > steps:
        raise ConfigError(
            f"training.warmup_steps {training.warmup_steps} is longer than training: {training.epochs} "
            f"epochs of {texts:,} texts in batches of {training.batch_size} are {steps} steps"
        )


def open_checkpoint(location: str, revision: str, longest: int) -> tuple[Checkpoint, TextTokenizer]:
    """The weights and the tokenizer to begin with.

    Raises ConfigError for a checkpoint that cannot be used, or is too short for ``model.max_length``.
    """
    from serve_app.inference.checkpoint import CheckpointError, import_tokenizer, read_checkpoint

    say(f"reading checkpoint '{location}'")
    try:
        checkpoint, tokenizer = read_checkpoint(location, revision), import_tokenizer(location, revision)
    except CheckpointError as error:
        raise ConfigError(f"model.checkpoint '{location}' cannot be used: {error}") from None
    if checkpoint.max_length < longest:
        raise ConfigError(
            f"model.max_length {longest} is more than the {checkpoint.max_length} positions of checkpoint "
            f"'{location}': set model.max_length to {checkpoint.max_length} or less"
        )
    words = checkpoint.sizes["vocabulary_size"]
    if tokenizer.vocabulary_size > words:
        raise ConfigError(
            f"model.checkpoint '{location}' cannot be used: its tokenizer has ids up to "
            f"{tokenizer.vocabulary_size - 1}, its model {words} word embeddings; they are not of the same model, or "
            "resize_token_embeddings was not called after tokens were added"
        )
    return checkpoint, tokenizer
