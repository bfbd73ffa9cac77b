"""The alias moves twenty times under load: nobody fails, and neither memory nor disk grows with the moves."""

from __future__ import annotations

import pytest

from tests.integration.serving.swaps import move
from tests.integration.serving.world import Service

MOVES = 20
_GROWTH_MB = 30.0  # of a replica, over all moves; one model has 10


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_twenty_moves_of_the_alias(service: Service):
    versions = [service.first_version, service.registry.register(width=512)]
    moved = move(service, versions, MOVES)
    assert moved.hammer.failures == []
    assert {version for _, version in moved.hammer.answers} == set(versions)
    assert moved.after.own_mb - moved.before.own_mb < 2 * _GROWTH_MB
    assert moved.after.threads <= moved.before.threads + 4
    assert moved.after.copies == moved.before.copies == sorted(versions)
