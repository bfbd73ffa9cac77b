"""A Ray address at which nothing listens is told before Ray tries for minutes."""

from __future__ import annotations

import socket

import pytest

from configs.exit_codes import ExitCode, Unreachable
from ray_jobs.cluster import ClusterUnavailable, connected
from serve_app import drain
from serve_app.ray_address import require_listener


@pytest.fixture
def closed() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_nobody_listens(closed: str, form: str) -> None:
    with pytest.raises(Unreachable, match=f"RAY_ADDRESS={form.format(closed)}"):
        require_listener(form.format(closed))


def test_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_listener(f"127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(Unreachable, match=address):
        require_listener(address)


@pytest.mark.parametrize("address", ["auto", "local", "http://127.0.0.1:8265"])
def test_other_forms_are_left_to_ray(address: str) -> None:
    require_listener(address)


def test_commands_say_that_it_is_unreachable(closed: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed)
    assert drain.main([]) == ExitCode.UNREACHABLE
    assert closed in capsys.readouterr().err
    # The tests of one session share a Ray; a command begins without one.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ClusterUnavailable, match=closed), connected(None):
        pass
