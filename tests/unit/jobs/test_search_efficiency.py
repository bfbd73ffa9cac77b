"""The replay of searches on the committed table."""

from __future__ import annotations

import itertools

from configs.search import SearchConfig
from tests.benchmarks.search_efficiency import SPACE, nearest, replay
from tests.benchmarks.search_table import EPOCHS, GRID, read_table


def test_the_table_is_complete() -> None:
    table = read_table()
    assert set(table) == {tuple(map(float, point)) for point in itertools.product(*GRID.values())}
    assert len(table) >= 200
    assert all(len(curve) == EPOCHS and 0 <= min(curve) <= max(curve) <= 1 for curve in table.values())


def test_nearest_point_in_scaled_dimensions() -> None:
    parameters = {
        "training.learning_rate": 1.2e-3,  # nearer to 1.5e-3 than to 6e-4 in the logarithm
        "training.batch_size": 32,
        "training.warmup_ratio": 0.32,
        "model.dropout": 0.01,
    }
    assert nearest(parameters, read_table()) == (1.5e-3, 32.0, 0.4, 0.0)


def test_full_trials_take_every_epoch_and_asha_fewer() -> None:
    table = read_table()
    plain = SearchConfig.model_validate({"space": SPACE, "trials": 12, "sampler": "random", "scheduler": "none"})
    assert len(list(replay(plain, table, 2, again=True))) == 12 * EPOCHS
    ours = SearchConfig.model_validate({"space": SPACE, "trials": 12})
    f1s = list(replay(ours, table, 2, again=False))
    assert 12 <= len(f1s) < 12 * EPOCHS
    assert list(replay(ours, table, 2, again=False)) == f1s, "the same seed gives the same search"
