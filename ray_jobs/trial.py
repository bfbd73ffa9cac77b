"""One trial on Ray: the Tune function, which starts a Train run, and the loop of that run's workers.

torch is imported where training happens: the Tune function, which Train's controller runs in, computes nothing.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.loading import ConfigError
from configs.schema import Settings
from configs.search import Choice
from ray_jobs.machine import Usage, processor

if TYPE_CHECKING:
    import numpy as np
    import ray

    from ray_jobs.training import EpochReport, LabelledTokens, Trainer
    from serve_app.inference.checkpoint import Checkpoint
    from serve_app.inference.families import PackedModel

OBJECTIVE = "best_validation_f1"
MODEL_FOLDER = "model"
STATE_FOLDER = "state"
_KEEP = "checkpoint_score"
_SAMPLE_TEXTS = 64


@dataclass(frozen=True)
class SearchData:
    """What every trial trains on: in Ray's object store once, read by all workers of a node without a copy.

    ``tokenizer_files``: file name to content, written into every saved model. ``checkpoint``: pretrained weights.
    """

    train: LabelledTokens
    validation: LabelledTokens
    tokenizer_files: Mapping[str, bytes]
    vocabulary_size: int
    checkpoint: Checkpoint | None
    label_names: tuple[str, ...]
    f1_key: str


@dataclass(frozen=True)
class TrialPlan:
    """What the trials of a search share. ``storage``: absolute path or URL of their folders. ``known_epochs``: how many
    the search has heard of, by the ids of the trials that go on."""

    settings: dict[str, Any]
    storage: str
    data: ray.ObjectRef[SearchData]
    known_epochs: dict[str, int] = field(default_factory=dict)


def run_trial(parameters: dict[str, Any], plan: TrialPlan) -> None:
    """The Tune function: runs one Train run to its end. A failure of a worker raises here and fails the trial.

    The run has the trial's id for its name, so another attempt goes on from the last epoch of the one before.
    """
    import ray.train
    import ray.tune

    from ray_jobs.train_run import InProcess, ReportToTune

    name = ray.tune.get_context().get_trial_id()
    assert name is not None
    settings = Settings.model_validate(plan.settings)
    search, workers = settings.search, settings.search.workers
    resources = {"CPU": search.cpus_per_trial / workers}
    if search.gpus_per_trial:
        resources["GPU"] = search.gpus_per_trial / workers
    trainer = InProcess
    if workers > 1 or search.gpus_per_trial:
        # Only where processes must find each other: it brings torch into this process, 150 MB for nothing when a trial
        # is one process on processors.
        from ray.train.torch import TorchTrainer

        class InProcessTorch(InProcess, TorchTrainer):
            """The same with PyTorch's process group."""

        trainer = InProcessTorch
    trainer(
        train_worker,
        train_loop_config={"parameters": parameters, "plan": plan, "name": name},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=search.gpus_per_trial > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=plan.storage,
            callbacks=[ReportToTune()],  # type: ignore[list-item]
            # Besides the best Train keeps the last, from which an interrupted run goes on. Three of the best, because
            # the driver hears of a new one up to two reports after Train has removed what it replaces.
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=3, checkpoint_score_attribute=_KEEP),
            # Train gives up on a place after a minute, and does so this often before the trial fails.
            failure_config=ray.train.FailureConfig(
                controller_failure_limit=round(search.placement_timeout_s / 60)  # type: ignore[call-arg]
            ),
        ),
    ).fit()


def release_workers(trial_id: str) -> None:
    """Gives back what the workers of a trial hold, if it is still held.

    Neither stopping a trial nor the death of its process does: in Ray 2.60 a placement group outlives the actor that
    made it, and all later trials and replicas would wait for ever.
    """
    from ray.util.placement_group import get_placement_group, remove_placement_group

    with contextlib.suppress(ValueError):  # there is none of this name
        remove_placement_group(get_placement_group(trial_id))


def train_worker(config: dict[str, Any]) -> None:
    """The loop of one worker: trains with the trial's parameters, reports each epoch, rank 0 saves the best."""
    plan: TrialPlan = config["plan"]
    settings = Settings.model_validate(plan.settings).with_parameters(config["parameters"])
    threads = max(1, int(settings.search.cpus_per_trial / settings.search.workers))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported, which makes as many threads
    import ray
    import ray.train
    import torch

    from ray_jobs.objectives import model_cost
    from ray_jobs.training import Trainer
    from ray_jobs.training_state import read_state, write_state
    from serve_app.inference.metrics import F1Definition

    data: SearchData = ray.get(plan.data)
    torch.set_num_threads(threads)
    model = build_model(settings, data)
    device, wrap = torch.device("cpu"), None
    if settings.search.workers > 1 or settings.search.gpus_per_trial:
        import ray.train.torch  # 1.5 s for nothing where one process trains on a processor

        device, wrap = ray.train.torch.get_device(), ray.train.torch.prepare_model
    trainer = Trainer(
        model,
        data.train.cut(settings.model.max_length),
        data.validation.cut(settings.model.max_length),
        settings.training,
        label_names=data.label_names,
        f1=F1Definition.from_key(data.f1_key),
        device=device,
        wrap=wrap,
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            read_state(Path(folder) / STATE_FOLDER, trainer)
    shared = {
        "precision": trainer.precision,
        "precision_reason": trainer.precision_reason,
        "processor": processor(device.type),
        **model_cost(model, trainer, data.validation.cut(settings.model.max_length), settings.search.objectives),
    }

    usage = Usage(device.type)

    def metrics_of(epoch: EpochReport) -> dict[str, Any]:
        # Where Train puts the checkpoint, known beforehand because this code names it.
        uri = f"{plan.storage}/{config['name']}/{checkpoint_name(epoch.best_epoch)}/{MODEL_FOLDER}"
        score = epoch.epoch if epoch.is_best else -epoch.epoch
        return epoch.as_dict() | shared | {"model_uri": uri, _KEEP: score}

    def report(epoch: EpochReport) -> None:
        metrics, name = metrics_of(epoch) | usage.measure(), checkpoint_name(epoch.epoch)
        if ray.train.get_context().get_world_rank():
            ray.train.report(metrics, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory(prefix="tg-checkpoint-") as temporary:
            write_state(Path(temporary) / STATE_FOLDER, trainer)
            if epoch.is_best:
                save_model(Path(temporary) / MODEL_FOLDER, trainer, model, data, settings)
            checkpoint = ray.train.Checkpoint.from_directory(temporary)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)

    # An earlier attempt may have been lost before its reports arrived; the driver passes over those it knows.
    for epoch in trainer.reports[plan.known_epochs.get(config["name"], 0) :]:
        ray.train.report(metrics_of(epoch))
    trainer.run(report)


def checkpoint_name(epoch: int) -> str:
    """The folder of an epoch's checkpoint, in its trial's."""
    return f"epoch-{epoch}"


def count_parameters(settings: Settings, data: SearchData) -> int:
    """Parameters of the largest model of the search, count. Raises ConfigError when it cannot be made."""
    with contextlib.suppress(ValueError, TypeError):  # not every combination of ends is a model
        largest = {key: max(space.values) if isinstance(space, Choice) else space.high
                   for key, space in settings.search.space.items() if key.startswith("model.")}  # fmt: skip
        settings = settings.with_parameters(largest)
    try:
        model = build_model(settings, data)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"the model cannot be made: {error}") from error
    return sum(parameter.numel() for parameter in model.parameters())


def build_model(settings: Settings, data: SearchData) -> PackedModel:
    """The model of ``settings`` with its weights before training."""
    from ray_jobs.training import seed_everything
    from serve_app.inference.families import new_distilbert, new_network

    seed_everything(settings.training.seed)
    model, names = settings.model, data.label_names
    dropouts: dict[str, Any] = {"dropout": model.dropout, "classifier_dropout": model.classifier_dropout}
    if model.family != "distilbert":
        assert model.sizes is not None
        sizes = model.sizes.model_dump() | {"vocabulary_size": data.vocabulary_size}
        return new_network(model.family, labels=names, **sizes, **dropouts)
    dropouts["attention_dropout"] = model.attention_dropout
    if data.checkpoint is not None:
        return new_distilbert(data.checkpoint.weights, labels=names, **data.checkpoint.sizes, **dropouts)
    assert model.architecture is not None
    architecture = model.architecture
    return new_distilbert(
        labels=names,
        layers=architecture.layers,
        width=architecture.width,
        heads=architecture.heads,
        feed_forward_width=architecture.feed_forward_width or 4 * architecture.width,
        vocabulary_size=data.vocabulary_size,
        max_length=model.max_length,
        **dropouts,
    )


def save_model(
    folder: Path,
    trainer: Trainer,
    model: PackedModel,
    data: SearchData,
    settings: Settings,
) -> None:
    """Writes the saved-model folder of the model as it is after the trainer's last epoch, calibrated, with a sample of
    the validation texts."""
    from serve_app.inference.metrics import F1Definition
    from serve_app.inference.saved_model import ModelInfo, write_model_folder

    validation = data.validation.cut(settings.model.max_length)
    sample = validation.tokens.select(range(min(_SAMPLE_TEXTS, len(validation))))
    logits: np.ndarray = trainer.logits(sample)
    f1, temperature = F1Definition.from_key(data.f1_key), trainer.reports[-1].temperature
    info = ModelInfo(data.label_names, settings.model.max_length, f1, temperature)
    write_model_folder(folder, model, data.tokenizer_files, info, sample, logits)
