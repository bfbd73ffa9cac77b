"""Following the alias under load: no failed request, every replica within ten seconds, broken versions kept out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.serving.world import Hammer, Service, wait_until

PROMISED_S = 10.0


@pytest.fixture
def back_to_first(service: Service) -> Iterator[None]:
    """Leaves the service as the other tests expect it."""
    yield
    service.registry.promote(service.first_version)
    service.wait_for_version(service.first_version, 2, PROMISED_S)


@pytest.mark.usefixtures("back_to_first")
def test_promotion_and_rollback_under_load(service: Service):
    second = service.registry.register()
    with Hammer(service) as hammer:
        wait_until(lambda: len(hammer.answers) > 20, 20)
        service.registry.promote(second)
        service.wait_for_version(second, 2, PROMISED_S)
        answered = len(hammer.answers)
        wait_until(lambda: len(hammer.answers) > answered + 20, 20)
        service.registry.promote(service.first_version)
        service.wait_for_version(service.first_version, 2, PROMISED_S)
        answered_again = len(hammer.answers)
        wait_until(lambda: len(hammer.answers) > answered_again + 20, 20)
    assert hammer.failures == []
    assert {version for _, version in hammer.answers} == {service.first_version, second}
    assert hammer.answers[-1][1] == service.first_version


@pytest.mark.usefixtures("back_to_first")
def test_two_quick_moves_end_on_the_last(service: Service):
    second, third = service.registry.register(), service.registry.register()
    service.registry.promote(second)
    service.registry.promote(third)
    service.wait_for_version(third, 2, PROMISED_S)


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = torch.full_like(weights["classifier.weight"], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _pickled(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


@pytest.mark.usefixtures("back_to_first")
@pytest.mark.parametrize("spoil", [_without_weights, _nan, _pickled])
def test_broken_version_is_reported_and_the_old_one_keeps_serving(service: Service, spoil: Any):
    broken = service.registry.register(spoil)
    with Hammer(service, threads=2) as hammer:
        service.registry.promote(broken)

        def reported() -> bool:
            replicas = service.info()["replicas"]
            return len(replicas) == 2 and all(
                broken in [error["version"] for error in replica["load_errors"]] for replica in replicas
            )

        wait_until(reported, PROMISED_S, service.info)
        answered = len(hammer.answers)
        wait_until(lambda: len(hammer.answers) > answered + 10, 20)
    assert hammer.failures == []
    assert {version for _, version in hammer.answers} == {service.first_version}
    info = service.info()
    assert info["model_version"] == service.first_version
    for replica in info["replicas"]:
        assert replica["version"] == service.first_version
        assert replica["desired_version"] == broken
        (error,) = [error for error in replica["load_errors"] if error["version"] == broken]
        assert error["error"]
        assert error["tries"] >= 1
    assert service.client.get("/ready").status_code == 200
    assert "trialgate_model_load_errors_total" in service.client.get("/metrics").text
