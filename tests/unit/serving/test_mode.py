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
