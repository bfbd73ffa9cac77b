"""The end of a service, as a command: what it says and by which exit code, on a Ray that is made of functions."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest
from ray.serve.exceptions import RayServeException

from configs.exit_codes import ExitCode
from serve_app import drain


@pytest.fixture(autouse=True)
def ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A Ray with the application ``trialgate``; what is done to it."""
    done: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(drain, "join", lambda address, **_: done.append(f"join {address}"))
    monkeypatch.setattr(drain, "start_draining", lambda name: done.append(f"drain {name}"))
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={"trialgate": None}))
    monkeypatch.setattr("ray.serve.delete", lambda name: done.append(f"delete {name}"))
    monkeypatch.setattr("ray.shutdown", lambda: done.append("leave"))
    return done


def test_it_drains_before_it_deletes(ray: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert drain.main([]) == ExitCode.OK
    assert ray == ["join auto", "drain trialgate", "delete trialgate", "leave"]
    assert capsys.readouterr().err == "drained and deleted: trialgate\n"


def test_another_name_and_no_address_are_bad_usage(
    ray: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drain.main(["--application", "other"]) == ExitCode.USAGE
    assert "no application 'other' on this Ray; running: trialgate" in capsys.readouterr().err
    assert ray == ["join auto", "leave"]
    monkeypatch.delenv("RAY_ADDRESS")
    assert drain.main([]) == ExitCode.USAGE
    assert "RAY_ADDRESS is not set" in capsys.readouterr().err


def test_an_application_that_does_not_drain_is_left(
    ray: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(name: str) -> None:
        raise RayServeException("the controller is gone")

    monkeypatch.setattr(drain, "start_draining", gone)
    assert drain.main([]) == ExitCode.FAILED
    assert capsys.readouterr().err == "error: trialgate cannot be drained: the controller is gone\n"
    assert ray == ["join auto", "leave"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_can_be_interrupted(
    ray: list[str], number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drain, "start_draining", lambda _: os.kill(os.getpid(), number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert drain.main([]) == ExitCode.INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "the application may be draining already\nerror: interrupted\n"
    assert ray == ["join auto", "leave"]
