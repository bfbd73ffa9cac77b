"""A Train run inside the process of the Tune function that starts it: three processes a trial instead of eight.

Beside Tune's function and the worker, Train would start its controller as an actor, a cleaner that removes the workers'
placement group if the controller is lost, a watcher of nodes that are going to be taken away, a manager of Ray Data
sets, a barrier for the workers, and a queue through which reports reach Tune's function. Every one is a Python process
that imports Ray anew: 1 to 2.5 s of processor time and 190 to 240 MB. Here the controller runs in Tune's function,
which would only wait for it, and hands reports to Tune itself; the workers' placement group has the trial's name, by
which the driver removes it (``trial.release_workers``). There is nothing to watch for, as every epoch is a checkpoint,
and no Ray Data set. The barrier stays. Nor is there the actor that asks the autoscaler for room on behalf of all runs:
the placement group asks for it by waiting.

Made for Ray 2.60, whose DataParallelTrainer has no public way to say this; the tests of lost processes cover it.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import ray
import ray.train
import ray.tune
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.preemption_callback import PreemptionCallback
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import DefaultPlacementGroupHandle, WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import placement_group

from ray_jobs import disk

# Train's 2 s would be waited for at the start of a trial, at its reports and at its end.
_POLL_SECONDS = 0.5


class ReportToTune(ray.train.UserCallback):
    """Hands what rank 0 reports to Tune; where Tune stops the trial, this ends the run by SystemExit."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """After all workers have reported and the checkpoint is stored."""
        ray.tune.report(metrics[0])


class _AsksNobody(FixedScalingPolicy):
    """So many workers, and no request to the autoscaler beside their placement group."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Starts no coordinator."""

    def _maybe_send_resource_request(self) -> None:
        """There is none to send it to."""


class _Workers(WorkerGroup):
    """Workers whose placement group has the run's name: the driver finds it, whatever becomes of this process."""

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
        wanted = worker_group_context
        group = placement_group(
            bundles=[wanted.resources_per_worker] * wanted.num_workers,
            strategy=wanted.placement_strategy,
            name=self._train_run_context.run_config.name,
            bundle_label_selector=wanted.label_selector,
        )
        return DefaultPlacementGroupHandle(group)


class _Controller(TrainController):
    worker_group_cls = _Workers

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        # Not by Train's environment variables: it hands those that are set to the workers, which then cannot be
        # processes that Ray has started beforehand.
        self._health_check_interval_s = _POLL_SECONDS
        self._worker_group_callbacks_to_propagate = [
            each for each in self._worker_group_callbacks_to_propagate if not isinstance(each, PreemptionCallback)
        ]
        checkpoints = self._checkpoint_manager
        if checkpoints._storage_context.storage_filesystem.type_name == "local":
            checkpoints._write_state_to_storage = functools.partial(  # type: ignore[method-assign]
                _write_whole, checkpoints
            )

    def give_back(self) -> None:
        """Ends the workers."""
        self._controller_callback_manager.invoke_best_effort("before_controller_abort")
        if self._worker_group is not None:
            self._worker_group.shutdown()


def _write_whole(checkpoints: CheckpointManager) -> None:
    # Train writes its list of a run's checkpoints in place. Where the disk was full or the process killed it was left
    # empty, and no later attempt could read it.
    disk.write_whole(checkpoints._storage_context.checkpoint_manager_snapshot_path, checkpoints._save_state())


class InProcess(DataParallelTrainer):
    """A trainer whose controller runs in this process; mix it in before TorchTrainer."""

    def _initialize_and_run_controller(self, **parts: Any) -> ray.train.Result:
        unused = (PlacementGroupCleanerCallback, DatasetsCallback)
        parts["callbacks"] = [each for each in parts["callbacks"] if not isinstance(each, unused)]
        parts["scaling_policy"] = _AsksNobody(parts["scaling_policy"].scaling_config)
        controller = _Controller(**parts)
        try:
            asyncio.run(controller.run())
        finally:
            if not controller.get_state().is_terminal():  # Tune has stopped the trial
                controller.give_back()
        return controller.get_result()
