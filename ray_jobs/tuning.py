"""The search's settings as Tune and Optuna take them: sampler, scheduler, space and limits."""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from configs.schema import Settings
from configs.search import Choice, Int, LogUniform, SearchConfig
from ray_jobs.objectives import GOALS
from ray_jobs.progress import EndWhenTold, TrackingCallback
from ray_jobs.resuming import ContinuedSearch, OneOfAKind, Past
from ray_jobs.trial import OBJECTIVE

if TYPE_CHECKING:
    import optuna
    from ray import tune
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search.optuna import OptunaSearch

_STUDY = "search"


def new_tuner(
    settings: Settings,
    trainable: Any,
    callback: TrackingCallback,
    storage: str,
    concurrent: int,
    past: Past,
    earlier: Sequence[optuna.trial.FrozenTrial] = (),
) -> tune.Tuner:
    """Tune, told of what had happened in the ``past`` of the search; its sampler knows the ``earlier`` trials too."""
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter

    search = settings.search
    searcher = new_searcher(search, earlier, past) if search.space else OneOfAKind()
    scheduler = new_scheduler(search, settings.training.epochs)
    if scheduler is not None:
        past.tell(scheduler)
    return tune.Tuner(
        trainable,
        param_space={},
        tune_config=tune.TuneConfig(  # the metric is given to the sampler, the scheduler and the reporter
            search_alg=ContinuedSearch(ConcurrencyLimiter(searcher, concurrent), past),
            scheduler=scheduler,
            num_samples=search.trials - len(past.settled),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{secrets.token_hex(3)}",  # what Tune writes there is never read again: the journal is
            storage_path=storage,
            callbacks=[callback],
            stop=EndWhenTold(callback.search),
            failure_config=tune.FailureConfig(max_failures=search.max_failures),
            verbose=0,  # the callback tells
        ),
    )


def new_searcher(
    search: SearchConfig, earlier: Sequence[optuna.trial.FrozenTrial] = (), past: Past | None = None
) -> OptunaSearch:
    """Tune's link to an Optuna study of the search's space, with its sampler and what ``earlier`` trials gave.

    They are put into the study as completed, as are the trials of this search's own ``past``, whose interrupted ones
    are the first to be suggested.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    goals = [GOALS[objective] for objective in search.objectives]
    space = {key: distribution(dimension) for key, dimension in search.space.items()}
    storage = optuna.storages.InMemoryStorage()
    direction = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    study = optuna.create_study(storage=storage, study_name=_STUDY, directions=[direction[mode] for _, mode in goals])
    study.add_trials(earlier)
    metrics, modes = [metric for metric, _ in goals], [mode for _, mode in goals]
    past = past or Past()
    past.fill(study, metrics, space)
    several = len(goals) > 1  # Optuna's samplers tell a list of one from a single objective
    return OptunaSearch(
        space,
        metric=metrics if several else metrics[0],
        mode=modes if several else modes[0],
        # Another seed after a resume: the same one would draw the first trials once more.
        sampler=new_sampler(search, earlier, (search.seed + 1_000_003 * len(past.trials)) % 2**32),
        storage=storage,
        study_name=_STUDY,
    )


def new_sampler(
    search: SearchConfig, earlier: Sequence[optuna.trial.FrozenTrial] = (), seed: int | None = None
) -> optuna.samplers.BaseSampler:
    """The sampler by its name, seeded: with one trial at a time the same search proposes the same parameters.

    ``seed``: default ``search.seed``.
    """
    from optuna import exceptions, samplers

    seed = search.seed if seed is None else seed
    options = search.sampler_options
    if search.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if search.sampler == "cmaes":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", exceptions.ExperimentalWarning)
            return samplers.CmaEsSampler(
                seed=seed,
                n_startup_trials=options["startup_trials"],
                popsize=options["population"],
                source_trials=list(earlier) or None,  # it learns from trials that it proposed itself, and from these
            )
    if search.sampler == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=options["startup_trials"])
    return samplers.TPESampler(
        seed=seed,
        multivariate=len(search.objectives) == 1,  # as Optuna recommends
        constant_liar=True,  # running trials count as bad ones, so that those beside each other differ
        n_startup_trials=options["startup_trials"],
        n_ei_candidates=options["candidates"],
    )


def new_scheduler(search: SearchConfig, epochs: int) -> TrialScheduler | None:
    """The scheduler by its name, counting in epochs; None runs every trial to its end."""
    from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

    options = search.scheduler_options
    if search.scheduler == "none":
        return None
    if (searched := search.space.get("training.epochs")) is not None:
        epochs = int(max(searched.values) if isinstance(searched, Choice) else searched.high)
    shared = {"time_attr": "epoch", "metric": OBJECTIVE, "mode": "max", "grace_period": options["grace_epochs"]}
    if search.scheduler == "median":
        # While there are too few trials to compare with, the rule would pause one to let others come as far, and our
        # trials cannot be paused: Tune holds no checkpoint of them. After a time slice without end it never does.
        return MedianStoppingRule(
            **shared,
            min_samples_required=options["minimum_trials"],
            min_time_slice=math.inf,  # type: ignore[arg-type]
        )
    return ASHAScheduler(**shared, max_t=epochs, reduction_factor=options["reduction_factor"])


def distribution(dimension: Any) -> optuna.distributions.BaseDistribution:
    """Optuna's form of a dimension of the search space."""
    import optuna

    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(dimension.values)
    if isinstance(dimension, Int):
        return optuna.distributions.IntDistribution(dimension.low, dimension.high)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))
