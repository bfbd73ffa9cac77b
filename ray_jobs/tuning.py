"""The search's settings as Tune and Optuna take them: sampler, scheduler, space and limits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from configs.schema import Choice, Int, LogUniform, Settings
from ray_jobs.progress import TrackingCallback, reporter
from ray_jobs.trial import OBJECTIVE

if TYPE_CHECKING:
    import optuna
    from ray import tune


def new_tuner(
    settings: Settings, trainable: Any, callback: TrackingCallback, storage: str, concurrent: int
) -> tune.Tuner:
    """Tune with seeded, multivariate TPE and ASHA by epoch."""
    import optuna
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    search = settings.search
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=search.seed, multivariate=True, constant_liar=concurrent > 1, n_startup_trials=search.startup_trials
    )
    space = {key: distribution(dimension) for key, dimension in search.space.items()}
    scheduler = None
    if search.scheduler == "asha":
        scheduler = ASHAScheduler(
            time_attr="epoch",
            metric=OBJECTIVE,
            mode="max",
            max_t=settings.training.epochs,
            grace_period=search.grace_epochs,
            reduction_factor=search.reduction_factor,
        )
    return tune.Tuner(
        trainable,
        param_space={},
        tune_config=tune.TuneConfig(  # the metric is given to the sampler, the scheduler and the reporter
            search_alg=OptunaSearch(space, metric=OBJECTIVE, mode="max", sampler=sampler) if space else None,
            scheduler=scheduler,
            num_samples=search.trials,
            max_concurrent_trials=concurrent,
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage,
            callbacks=[callback],
            failure_config=tune.FailureConfig(max_failures=search.max_failures),
            progress_reporter=reporter(list(search.space)),
            verbose=1 if sys.stderr.isatty() else 0,
        ),
    )


def distribution(dimension: Any) -> optuna.distributions.BaseDistribution:
    """Optuna's form of a dimension of the search space."""
    import optuna

    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    if isinstance(dimension, Int):
        return optuna.distributions.IntDistribution(dimension.low, dimension.high)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))
