"""The switches of Ray Serve's fast path, as a Ray that is started inside sees them."""

from __future__ import annotations

import os
import socket

import pytest

from serve_app import mode

PORTS = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PORTS, *mode.fast_path_variables()):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)


def test_what_starts_inside_is_fast_and_the_ports_are_its_own():
    with mode.fast_path():
        assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert len({os.environ[name] for name in PORTS}) == 2
    assert not [name for name in PORTS if name in os.environ]


def test_the_user_has_the_last_word(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    monkeypatch.setenv(PORTS[0], "12345")
    with mode.fast_path():
        assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
        assert os.environ[PORTS[0]] == "12345"
    assert os.environ[PORTS[0]] == "12345"


def test_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(mode, "_PORTS", {PORTS[0]: port})
        with mode.fast_path():
            assert int(os.environ[PORTS[0]]) > port


def test_without_haproxy_nothing_is_changed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mode.importlib.util, "find_spec", lambda name: None)
    with mode.fast_path():
        assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_replica_on_loopback_is_out_of_reach_of_a_head_on_another_node(host: str):
    assert mode.unreachable(host, node="10.0.0.1", heads={"10.0.0.1"}) is None
    warning = mode.unreachable(host, node="10.0.0.2", heads={"10.0.0.1"})
    assert warning is not None
    assert all(part in warning for part in (host, "10.0.0.1", "10.0.0.2", "configs/serve_all_interfaces.yaml"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.2", None])
def test_one_on_the_network_is_not(host: str | None):
    assert mode.unreachable(host, node="10.0.0.2", heads={"10.0.0.1"}) is None
