"""Following the alias under load: no failed request, every replica within ten seconds, broken versions kept out."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from configs.schema import Settings
from tests.broken import BROKEN
from tests.integration.serving.world import Hammer, Service, copies, wait_until

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


@pytest.mark.usefixtures("back_to_first")
@pytest.mark.parametrize("name", ["weights cut short", "NaN logits", "pickled weights"])  # all of them: tests/unit
def test_broken_version_is_reported_and_the_old_one_keeps_serving(service: Service, settings: Settings, name: str):
    spoil, words = BROKEN[name]
    broken, good = service.registry.register(spoil), service.registry.register()
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
        info, metrics = service.info(), service.client.get("/metrics").text
        assert service.client.get("/ready").status_code == 200
        assert broken not in copies(settings)
        service.registry.promote(good)
        service.wait_for_version(good, 2, PROMISED_S)
    assert hammer.failures == []
    assert {version for _, version in hammer.answers} <= {service.first_version, good}
    assert info["model_version"] == service.first_version
    assert len(re.findall(r"trialgate_model_load_errors_total{.*} [1-9]", metrics)) == 2
    for replica in info["replicas"]:
        assert replica["version"] == service.first_version
        assert replica["desired_version"] == broken
        (error,) = [error for error in replica["load_errors"] if error["version"] == broken]
        assert words in error["error"]
        assert "Move the alias" in error["fix"]
        assert error["tries"] >= 1
