"""What keeps a command out of a Ray is told at once: nobody listens, or the token is another one."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from configs.exit_codes import ExitCode, Unreachable, UsageError
from ray_jobs.cluster import connected
from serve_app import drain
from serve_app.ray_address import require_entry


@pytest.fixture
def closed() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_nobody_listens(closed: str, form: str) -> None:
    with pytest.raises(Unreachable, match=f"RAY_ADDRESS={form.format(closed)}"):
        require_entry(form.format(closed))


def test_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_entry(f"ray://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(Unreachable, match=address):
        require_entry(address)


@pytest.mark.parametrize("address", ["auto", "local"])
def test_other_forms_are_left_to_ray(address: str) -> None:
    require_entry(address)


def test_the_address_of_the_dashboard_is_bad_usage() -> None:
    with pytest.raises(UsageError, match="is the dashboard, which takes jobs.*ray job submit"):
        require_entry("http://127.0.0.1:8265")


class Head(grpc.GenericRpcHandler):
    """Answers as the head of a cluster with this ``token`` does."""

    def __init__(self, token: str) -> None:
        self._token = token

    def service(self, call: Any) -> Any:
        def answer(_: bytes, context: Any) -> bytes:
            if ("authorization", f"Bearer {self._token}") not in call.invocation_metadata:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of one whose token is ``right``; this user has none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool, handlers=[Head("right")])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is not set to token, so that none is sent"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "right"}, "RAY_AUTH_MODE is not set to token"),
        ({"RAY_AUTH_MODE": "token"}, "~/.ray/auth_token have none"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}, "wants another token than the one in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/no/such"}, "~/.ray/auth_token have none"),
    ],
)
def test_a_token_that_does_not_open(
    head: str, variables: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unreachable, match=f"{told}.*ray get-auth-token"):
        require_entry(head)


def test_a_token_that_opens_is_found_where_ray_looks(
    head: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("right\n")
    require_entry(head)
    (tmp_path / "token").write_text("right")
    (tmp_path / ".ray" / "auth_token").write_text("wrong")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    require_entry(head)
    (tmp_path / "token").write_text("wrong")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    require_entry(head)


def test_commands_say_that_it_is_unreachable(closed: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("RAY_ADDRESS", closed)
    assert drain.main([]) == ExitCode.UNREACHABLE
    assert closed in capsys.readouterr().err
    # The tests of one session share a Ray; a command begins without one.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(Unreachable, match=closed), connected(None):
        pass
