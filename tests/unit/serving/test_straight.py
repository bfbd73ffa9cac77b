"""What answers predictions without FastAPI around it answers as the whole application does."""

from __future__ import annotations

import httpx
import pytest

from configs.schema import Settings
from serve_app import errors
from serve_app.api import create_api, digest_keys
from serve_app.metrics import GatewayMetrics
from tests.unit.serving.test_api import EchoBackend

KEY = {"x-api-key": "secret"}
JSON = {"content-type": "application/json"}


@pytest.fixture
def backend() -> EchoBackend:
    return EchoBackend()


@pytest.fixture
def clients(backend: EchoBackend) -> list[httpx.AsyncClient]:
    """Of the whole application, and of its shortcut."""
    settings = Settings.model_validate({"serving": {"max_body_bytes": 1000, "max_text_chars": 100}})
    api = create_api(settings, backend, GatewayMetrics(), key_digests=digest_keys("secret"))
    applications = (api, api.state.predictions)
    return [
        httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://service")
        for app in applications
    ]


@pytest.mark.parametrize("failure", [None, errors.overloaded(7), errors.not_ready(), ZeroDivisionError()])
@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/predict", b'{"text": "yes"}', KEY | JSON),
        ("/predict", b'{"text": "yes"}', KEY | JSON | {"x-request-id": "mine"}),
        ("/predict", b'{"text": "yes"}', JSON),
        ("/predict", b'{"text": "yes"}', KEY | {"content-type": "text/plain"}),
        ("/predict", b'{"text": "' + b"x" * 2000 + b'"}', KEY | JSON),
        ("/predict", b"{", KEY | JSON),
        ("/predict", b'{"text": " "}', KEY | JSON),
        ("/batch_predict", b'{"texts": ["yes", "no"]}', KEY | JSON),
        ("/batch_predict", b'{"texts": []}', KEY | JSON),
    ],
)
async def test_the_shortcut_answers_as_the_application(
    clients: list[httpx.AsyncClient],
    backend: EchoBackend,
    path: str,
    body: bytes,
    headers: dict[str, str],
    failure: Exception | None,
):
    backend.failure = failure
    whole, straight = [await client.post(path, content=body, headers=headers) for client in clients]
    assert straight.status_code == whole.status_code
    assert comparable(straight) == comparable(whole)
    assert list(straight.headers) == list(whole.headers)
    assert straight.headers.get("retry-after") == whole.headers.get("retry-after")


def comparable(response: httpx.Response) -> object:
    """The reply without a request id that was made up."""
    made = response.headers["x-request-id"]
    return response.text.replace(made, "") if made != "mine" else response.text
