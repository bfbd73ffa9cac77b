"""The training step: packing, accumulation and the number of workers change nothing; the loop does what it says."""

from __future__ import annotations

import gc
import importlib
import itertools
import multiprocessing
import os
import socket
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from configs.model import TrainingConfig
from ray_jobs.training import (
    EpochReport,
    LabelledTokens,
    Trainer,
    TrainingDivergedError,
    class_weights,
    learning_rate_factor,
    seed_everything,
)
from ray_jobs.training_state import read_state, write_state
from serve_app.inference.distilbert import PackedDistilBert
from serve_app.inference.families import new_distilbert
from serve_app.inference.metrics import F1Definition
from tests.tiny import tokens_of

NAMES = ("no", "yes")
POSITIVE = F1Definition("binary", "yes")


def labelled(texts: int, seed: int) -> LabelledTokens:
    """Texts whose class is the parity of their second token, which a tiny model learns at once."""
    rng = np.random.default_rng(seed)
    tokens = tokens_of(rng, rng.integers(2, 40, size=texts).tolist(), 60)
    return LabelledTokens(tokens, np.array([int(row[1]) % 2 for row in tokens]))


def tiny(dropout: float = 0.0, spread: float = 1.0) -> PackedDistilBert:
    seed_everything(3)
    model = new_distilbert(
        layers=1, width=32, heads=2, feed_forward_width=64, vocabulary_size=60, max_length=64, labels=NAMES,
        dropout=dropout, attention_dropout=dropout, classifier_dropout=dropout,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(spread)
    return model


def trainer(model: PackedDistilBert, texts: int = 90, **changes: object) -> Trainer:
    config = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "precision": "fp32", **changes}
    return Trainer(
        model, labelled(texts, 0), labelled(50, 1), TrainingConfig.model_validate(config),
        label_names=NAMES, f1=POSITIVE,
    )  # fmt: skip


def weights(model: PackedDistilBert) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_accumulated_small_batches_equal_one_big_batch() -> None:
    big, small = tiny(), tiny()
    reports_big = trainer(big, max_batch_tokens=100_000).run()
    reports_small = trainer(small, max_batch_tokens=40).run()
    torch.testing.assert_close(weights(big), weights(small), atol=2e-4, rtol=1e-3)
    assert reports_big[-1].train_loss == pytest.approx(reports_small[-1].train_loss, abs=1e-4)


def test_same_seed_same_weights_and_other_seed_others() -> None:
    first, second, other = tiny(0.1), tiny(0.1), tiny(0.1)
    trainer(first).run()
    trainer(second).run()
    trainer(other, seed=1).run()
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    changes = {"epochs": 4, "batch_size": 16, "schedule": "cosine"}
    whole, first, second = tiny(0.1), tiny(0.1), tiny(0.1)
    expected = trainer(whole, **changes).run()
    interrupted = trainer(first, **changes)

    def end_after_two(report: EpochReport) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted.run(end_after_two)
    write_state(tmp_path / "state", interrupted)
    torch.rand(7)  # where torch's generator stands by then is anybody's guess
    following = trainer(second, **changes)
    read_state(tmp_path / "state", following)
    found = following.run()
    assert torch.equal(weights(whole), weights(second))
    assert [curve(report) for report in found] == [curve(report) for report in expected]
    assert trainer_that_is_done(following) == []


def curve(report: EpochReport) -> tuple[float, ...]:
    return (report.epoch, report.step, report.train_loss, report.validation_loss, report.validation_f1,
            report.best_epoch, report.learning_rate, report.temperature)  # fmt: skip


def trainer_that_is_done(done: Trainer) -> list[EpochReport]:
    more: list[EpochReport] = []
    done.run(more.append)
    return more


def test_it_learns() -> None:
    # A layer this narrow hardly learns from weights as small as a wide one's.
    reports = trainer(tiny(spread=5), texts=400, epochs=6).run()
    assert reports[-1].best_validation_f1 > 0.95
    assert reports[-1].train_loss < reports[0].train_loss
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[-1].step == 6 * 25


def test_bf16_learns_as_well() -> None:
    assert trainer(tiny(spread=5), texts=400, epochs=6, precision="bf16").run()[-1].best_validation_f1 > 0.9


def test_class_weights_repeat_a_class() -> None:
    """A text of weight 3 counts like three copies of it."""
    data = labelled(24, 0)
    repeated = np.repeat(np.arange(24), np.where(data.labels == 1, 3, 1))
    copies = LabelledTokens(data.tokens.select(repeated), data.labels[repeated])
    losses, trained = [], []
    for texts, setting in ((data, {"yes": 3.0}), (copies, "none")):
        config = TrainingConfig(epochs=1, batch_size=len(texts), precision="fp32", class_weights=setting)
        model = tiny()
        report = Trainer(model, texts, data, config, label_names=NAMES, f1=POSITIVE).run()[0]
        losses.append(report.train_loss * len(texts))
        trained.append(weights(model))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(trained[0], trained[1])


def test_balanced_class_weights_and_labels_that_do_not_exist() -> None:
    labels = np.array([0, 0, 0, 1])
    balanced = class_weights("balanced", labels, NAMES)
    assert balanced is not None
    torch.testing.assert_close(balanced, torch.tensor([4 / 6, 2.0]))
    assert class_weights("none", labels, NAMES) is None
    with pytest.raises(ValueError, match=r"class_weights names 'maybe', which is not a label: no, yes"):
        class_weights({"maybe": 2.0}, labels, NAMES)


def test_early_stop_after_patience() -> None:
    reports = trainer(tiny(), learning_rate=1e-12, epochs=50, early_stop_patience=3).run()
    assert len(reports) == reports[-1].best_epoch + 3 < 50


def test_nan_is_a_failure() -> None:
    model = tiny()
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    with pytest.raises(TrainingDivergedError, match="epoch 1"):
        trainer(model).run()


def test_every_epoch_is_reported_once_and_in_order() -> None:
    seen = []
    reports = trainer(tiny(), epochs=3).run(lambda report: seen.append(report))
    assert seen == reports
    assert reports[0].is_best
    best = max(reports, key=lambda report: report.validation_f1)
    assert reports[-1].best_validation_f1 == best.validation_f1


@pytest.mark.parametrize(("schedule", "end"), [("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)])
def test_schedule(schedule: str, end: float) -> None:
    factors = [learning_rate_factor(step, 100, 10, schedule) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(end, abs=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_cut_keeps_the_separator() -> None:
    data = LabelledTokens(tokens_of(np.random.default_rng(0), [3, 30], 60), np.array([0, 1]))
    cut = data.cut(10)
    assert cut.tokens.lengths.tolist() == [3, 10]
    assert cut.tokens[1][-1] == data.tokens[1][-1]
    assert cut.tokens[1][:9].tolist() == data.tokens[1][:9].tolist()


def _worker(rank: int, ranks: int, port: int, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    # gloo's threads end with the process group. One that still runs when Python ends may yet have to give back the
    # tensor of the last all_reduce, needs the GIL for that, and aborts the process. DDP imports this module, whose
    # functions have the group of that moment for a default: imported before there is one, it keeps none alive.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    group = weakref.ref(dist.group.WORLD)
    model = tiny()
    config = TrainingConfig(epochs=2, batch_size=16, learning_rate=3e-3, precision="fp32", max_batch_tokens=64)
    # 81 texts: the last step has one text, so that one of two ranks has none.
    reports = Trainer(
        model, labelled(81, 0), labelled(51, 1), config, label_names=NAMES, f1=POSITIVE,
        wrap=torch.nn.parallel.DistributedDataParallel if ranks > 1 else None,
    ).run()  # fmt: skip
    if rank == 0:
        values = [[r.train_loss, r.validation_loss, r.validation_f1, r.validation_accuracy] for r in reports]
        torch.save({"reports": values, "weights": weights(model)}, out)
    gc.collect()  # DDP's reference cycles hold the group
    dist.destroy_process_group()
    assert group() is None


def test_one_and_two_workers_take_the_same_steps(tmp_path: Path) -> None:
    results = []
    for ranks in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        out = str(tmp_path / f"{ranks}.pt")
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_worker, args=(rank, ranks, port, out)) for rank in range(ranks)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
            assert worker.exitcode == 0
        results.append(torch.load(out, weights_only=True))
    np.testing.assert_allclose(results[0]["reports"], results[1]["reports"], atol=1e-4)
    torch.testing.assert_close(results[0]["weights"], results[1]["weights"], atol=3e-4, rtol=1e-3)
