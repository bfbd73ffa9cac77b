"""Tune's actors as objects of this process: what is left of a search is the work of its driver."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from ray.air.execution._internal import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.tune.execution import tune_controller
from ray.tune.result import RESULT_DUPLICATE

from ray_jobs.training import EpochReport


class FakeTrial:
    """An actor that trains nothing and reports a curve that its parameters choose, in the fields of a real trial."""

    def __init__(self, config: dict[str, Any], epochs: int) -> None:
        self._epochs = epochs
        self.begin(config)

    def begin(self, config: dict[str, Any]) -> None:
        """Becomes another trial, as Tune reuses its actors."""
        numbers = {key: value for key, value in config.items() if isinstance(value, float)}
        chance = random.Random(str(sorted(numbers.items())))
        self._top, self._chance = 0.6 + 0.35 * chance.random(), chance
        self._epoch, self._best, self._best_epoch = 0, 0.0, 0

    def train(self) -> dict[str, Any]:
        """The next epoch, or after the last one what a Tune function sends when it returns."""
        if self._epoch == self._epochs:
            return {RESULT_DUPLICATE: True}
        self._epoch += 1
        f1 = self._top * (1 - math.exp(-self._epoch / 2)) + 0.02 * self._chance.random()
        if f1 > self._best:
            self._best, self._best_epoch = f1, self._epoch
        report = EpochReport(
            epoch=self._epoch,
            step=100 * self._epoch,
            train_loss=1 - f1,
            validation_loss=1.1 - f1,
            validation_f1=f1,
            validation_accuracy=f1,
            best_validation_f1=self._best,
            best_epoch=self._best_epoch,
            learning_rate=1e-3,
            train_texts_per_second=100.0,
            train_tokens_per_second=3000.0,
            seconds=60.0,
        )
        return report.as_dict() | {
            "precision": "fp32",
            "precision_reason": "simulated",
            "processor": "simulated",
            "parameters": 66_000_000,
            "model_uri": f"/nowhere/epoch-{self._best_epoch}/model",
            "system/peak_memory_mb": 1000.0,
            "system/cpu_seconds": 60.0,
            "system/cpu_cores": 1.0,
            "timestamp": int(time.time()),
            "training_iteration": self._epoch,
            "time_this_iter_s": 60.0,
            "time_total_s": 60.0 * self._epoch,
            "done": False,
        }

    @property
    def get_auto_filled_metrics(self) -> Any:
        """Tune calls ``.remote()`` on it, for what a trial has before its first result."""
        return mock.Mock(remote=lambda **_: {})


class InProcessActors(RayActorManager):
    """Tune's actor manager with such actors: all start at once, and every report arrives as soon as it is asked for.

    ``cpu``: processor seconds of the loop's thread when the first actor was asked for and at the latest event.
    """

    def __init__(self, resource_manager: Any, epochs: int) -> None:
        super().__init__(resource_manager)
        self._epochs = epochs
        self._events: deque[tuple[TrackedActor | None, Callable[[], Any]]] = deque()
        self._stopped: set[TrackedActor] = set()
        self._tokens = itertools.count(1)
        self.cpu = (0.0, 0.0)
        self.results = self.most_live = 0

    def add_actor(  # type: ignore[override] # Tune names them all
        self, cls: Any, kwargs: dict[str, Any], resource_request: Any, *, on_start: Any, on_stop: Any, on_error: Any
    ) -> TrackedActor:
        """Lives at once."""
        if not self.cpu[0]:
            self.cpu = (time.thread_time(), 0.0)
        actor = TrackedActor(next(self._tokens), on_start, on_stop, on_error)
        live: Any = (FakeTrial(kwargs["config"], self._epochs), mock.Mock(resource_request=resource_request))
        self._live_actors_to_ray_actors_resources[actor] = live
        self._live_resource_cache = {}
        self.most_live = max(self.most_live, len(self._live_actors_to_ray_actors_resources))
        self._events.append((actor, lambda: on_start(actor)))
        return actor

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: Any = None,
        kwargs: Any = None,
        on_result: Any = None,
        on_error: Any = None,
        _return_future: bool = False,
    ) -> Any:
        """Runs it when its turn comes; ``stop`` has nothing to do."""
        trial: Any = self._live_actors_to_ray_actors_resources[tracked_actor][0]
        if method_name == "train":

            def train() -> None:
                self.results += 1
                on_result(tracked_actor, trial.train())

            self._events.append((tracked_actor, train))
        elif method_name == "reset":
            trial.begin(args[0])
            self._events.append((tracked_actor, lambda: on_result(tracked_actor, True)))
        return method_name

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None) -> bool:
        """It ends with the next event."""
        if tracked_actor not in self._live_actors_to_ray_actors_resources:
            return False
        self.clear_actor_task_futures(tracked_actor)

        def stop() -> None:
            self._live_actors_to_ray_actors_resources.pop(tracked_actor, None)
            self._live_resource_cache = {}
            if tracked_actor._on_stop:
                tracked_actor._on_stop(tracked_actor)

        self._events.append((None, stop))
        return True

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        """Forgets what it was asked for."""
        self._events = deque(event for event in self._events if event[0] != tracked_actor)

    @property
    def num_actor_tasks(self) -> int:
        """As Ray's."""
        return len(self._events)

    def next(self, timeout: float | None = None) -> bool:
        """The event that has waited longest."""
        self.cpu = (self.cpu[0], time.thread_time())
        if not self._events:
            return False
        self._events.popleft()[1]()
        self.cpu = (self.cpu[0], time.thread_time())
        return True

    def cleanup(self) -> None:
        """Nothing of Ray's is held."""


@contextlib.contextmanager
def in_process(epochs: int) -> Iterator[list[InProcessActors]]:
    """Searches inside have their trials in this process; yields their actor managers."""
    made: list[InProcessActors] = []

    def make(resource_manager: Any) -> InProcessActors:
        made.append(InProcessActors(resource_manager, epochs))
        return made[-1]

    with mock.patch.object(tune_controller, "RayActorManager", make):
        yield made
