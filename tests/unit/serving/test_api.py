"""The HTTP interface without Ray: every status and code, their order, ids, headers, keys and the deadline."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import httpx
import pytest

from configs.schema import Settings
from serve_app import errors
from serve_app.answers import Answer, Explanation
from serve_app.api import create_api, digest_keys
from serve_app.errors import ErrorCode, ServiceError
from serve_app.metrics import GatewayMetrics, render, snapshot
from serve_app.schemas import Info

READY = {"replica": "r1", "ready": True, "version": "7", "since": 5.0, "labels": ["no", "yes"], "max_length": 64,
         "desired_version": "7", "loading_version": None, "load_errors": [], "registry_error": None,
         "started_from_last_good": False}  # fmt: skip
JSON = {"content-type": "application/json"}


class EchoBackend:
    """Answers "yes" exactly for texts with a "y" in them; can be told to fail, to hang, or to have no model."""

    def __init__(self) -> None:
        self.view: dict[str, Any] = {"number": 1, "generation": 0, "draining": False, "replicas": [dict(READY)]}
        self.calls: list[tuple[list[str], bool]] = []
        self.explained: list[tuple[str, bool, str | None]] = []
        self.remaining_s = 0.0
        self.failure: Exception | None = None
        self.hang = False

    async def classify(self, texts: Sequence[str], truncate: bool, remaining_s: Callable[[], float]) -> Answer:
        self.calls.append((list(texts), truncate))
        if self.hang:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        rows = [[0.25, 0.75] if "y" in text else [0.9, 0.1] for text in texts]
        return Answer("8", ("no", "yes"), rows, [len(text) > 50 for text in texts], {"forward": 0.001})

    async def explain(
        self, text: str, truncate: bool, label: str | None, remaining_s: Callable[[], float]
    ) -> Explanation:
        self.explained.append((text, truncate, label))
        self.remaining_s = remaining_s()
        if self.hang:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return Explanation("8", ("no", "yes"), [0.25, 0.75], False, label or "yes", [(0, 2, -0.5), (3, 6, 1.7)],
                           "nothing", 1.1, -0.1, 0.0, {"explain": 0.25})  # fmt: skip

    async def metrics_text(self) -> str:
        return "# nothing\n"


class Service:
    """A client of an API around an ``EchoBackend``."""

    def __init__(self, serving: dict[str, Any], keys: str = "") -> None:
        self.backend, self.metrics = EchoBackend(), GatewayMetrics()
        api = create_api(
            Settings.model_validate({"serving": serving}), self.backend, self.metrics, key_digests=digest_keys(keys)
        )
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://service")

    async def post(self, body: bytes | str | dict, path: str = "/predict", **headers: str) -> httpx.Response:
        content = json.dumps(body) if isinstance(body, dict) else body
        return await self.client.post(path, content=content, headers={**JSON, **headers})

    def metrics_text(self) -> str:
        return render({("gateway", "g1"): snapshot(self.metrics.registry)})


@pytest.fixture
def service() -> Service:
    return Service({"max_text_chars": 100, "max_client_batch_size": 3, "max_body_bytes": 1000, "deadline_ms": 5000})


def check_error(response: httpx.Response, code: str, retryable: bool = False) -> dict[str, Any]:
    assert response.status_code == ErrorCode(code).status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"code", "message", "retryable", "request_id"}
    assert body["error"]["code"] == code
    assert body["error"]["retryable"] is retryable
    assert body["error"]["message"]
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    check_headers(response)
    return body["error"]


def check_headers(response: httpx.Response) -> None:
    assert len(response.headers.get_list("x-request-id")) == 1
    assert response.headers["x-model-version"]
    assert "total;dur=" in response.headers["server-timing"]


async def test_predict_answers_as_in_the_contract(service):
    response = await service.post({"text": "oh yes"})
    assert response.status_code == 200
    assert response.json() == {
        "label": "yes",
        "score": 0.75,
        "probabilities": {"no": 0.25, "yes": 0.75},
        "truncated": False,
        "model_version": "8",
    }
    check_headers(response)
    assert response.headers["x-model-version"] == "8"  # the version that computed it, not the newest
    assert "forward;dur=1.00" in response.headers["server-timing"]
    assert service.backend.calls == [(["oh yes"], True)]


async def test_batch_keeps_the_order_and_names_one_version(service):
    response = await service.post({"texts": ["y", "n", "y" * 60], "truncate": False}, "/batch_predict")
    body = response.json()
    assert [prediction["label"] for prediction in body["predictions"]] == ["yes", "no", "yes"]
    assert [prediction["truncated"] for prediction in body["predictions"]] == [False, False, True]
    assert body["model_version"] == "8"
    assert {prediction["model_version"] for prediction in body["predictions"]} == {"8"}
    assert service.backend.calls[0][1] is False


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b'{"text": "a"} x', "bad_json"),
        (b'{"text": NaN}', "bad_json"),
        (b'{"text": "\xff"}', "bad_json"),
        ('{"text": "a"}'.encode("utf-16"), "bad_json"),
        (b'\xef\xbb\xbf{"text": "a"}', "bad_json"),
        (b"[" * 900, "bad_json"),
        (b'{"text": "\\ud800"}', "invalid_request"),
        (b'{"\\ud800": 1, "text": "a"}', "invalid_request"),
        (b"null", "invalid_request"),
        (b'"a"', "invalid_request"),
        (b"[]", "invalid_request"),
        (b"{}", "invalid_request"),
        (b'{"text": null}', "invalid_request"),
        (b'{"text": 7}', "invalid_request"),
        (b'{"text": ' + b"7" * 900 + b"}", "invalid_request"),
        (b'{"text": ["a"]}', "invalid_request"),
        (b'{"text": "a", "truncate": "true"}', "invalid_request"),
        (b'{"text": "a", "truncate": 1}', "invalid_request"),
        (b'{"text": "a", "truncate": null}', "invalid_request"),
        (b'{"text": "a", "more": 1}', "invalid_request"),
        (b'{"texts": ["a"]}', "invalid_request"),
        (b'{"text": ""}', "empty_text"),
        (b'{"text": " \\n\\t\\u3000"}', "empty_text"),
        (b'{"text": "\\u0000\\u200b"}', "empty_text"),
        (json.dumps({"text": "a" * 101}).encode(), "text_too_long"),
        (json.dumps({"text": " " * 101}).encode(), "text_too_long"),  # always, whatever else it is
        (json.dumps({"text": "\ud800" * 101}).encode(), "text_too_long"),
    ],
)
async def test_predict_refuses(service, body, code):
    check_error(await service.post(body), code)
    assert service.backend.calls == []


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({"texts": []}, "invalid_request", "texts"),
        ({"texts": "a"}, "invalid_request", "texts"),
        ({"texts": ["a", 1]}, "invalid_request", "texts[1]"),
        ({"texts": ["a", None]}, "invalid_request", "texts[1]"),
        ({"texts": ["a"] * 4}, "batch_too_large", "at most 3"),
        ({"texts": ["a", "  "]}, "empty_text", "texts[1]"),
        ({"texts": ["a", "b" * 101]}, "text_too_long", "texts[1]"),
        ({"text": "a"}, "invalid_request", "texts"),
    ],
)
async def test_batch_refuses_and_names_the_place(service, body, code, named):
    error = check_error(await service.post(body, "/batch_predict"), code)
    assert named in error["message"]


@pytest.mark.parametrize("text", ["a\u0000b", "naïve 日本 🎬", "a" * 100, "\u202eabc", "'; DROP TABLE"])
async def test_unusual_texts_are_texts(service, text):
    assert (await service.post({"text": text})).status_code == 200
    assert service.backend.calls == [([text], True)]


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx",
                                          "application/json; charset=latin-1", "application/json; charset=utf-16",
                                          "application/json; charset=utf-8; charset=latin-1", "text/json",
                                          "application/json, text/plain", "application/json; charset",
                                          "application/json; charset*=utf-8''%ff",
                                          "application/json; a*=x; a*0=y",
                                          f"application/json; a*{'1' * 5000}=x"])  # fmt: skip
async def test_other_media_types_are_415(service, content_type):
    check_error(await service.post({"text": "a"}, **{"content-type": content_type}), "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON",
                                          'application/json;charset="UTF-8"', "application/json;",
                                          "application/json; notcharset=latin-1",
                                          'application/json; version="charset=latin-1"'])  # fmt: skip
async def test_json_by_any_spelling_is_taken(service, content_type):
    assert (await service.post({"text": "a"}, **{"content-type": content_type})).status_code == 200


async def test_two_media_types_are_none(service):
    headers = [("content-type", "application/json"), ("content-type", "text/plain")]
    response = await service.client.post("/predict", content=b'{"text": "a"}', headers=headers)
    check_error(response, "unsupported_media_type")


async def test_unknown_route_and_method(service):
    check_error(await service.client.get("/nowhere"), "not_found")
    check_error(await service.client.post("/predict/", content="{}"), "not_found")
    response = await service.client.get("/predict")
    check_error(response, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    check_error(await service.client.post("/health"), "method_not_allowed")


async def test_first_of_several_errors_counts():
    service = Service({"max_body_bytes": 100, "deadline_ms": 5000}, keys="secret")
    service.backend.view["replicas"] = []
    service.backend.failure = errors.not_ready()
    big, key = b"{" * 101, {"x-api-key": "secret"}
    check_error(await service.client.get("/predict"), "method_not_allowed")
    check_error(await service.client.post("/nowhere", content=big), "not_found")
    check_error(await service.post(big, **{"content-type": "text/plain"}), "unauthorized")
    check_error(await service.post(big, **{"content-type": "text/plain"}, **key), "unsupported_media_type")
    check_error(await service.post(big, **key), "payload_too_large")
    check_error(await service.post(b"{", **key), "bad_json")
    check_error(await service.post({"text": ""}, **key), "empty_text")
    check_error(await service.post({"text": "a"}, **key), "not_ready", retryable=True)


async def test_large_bodies_are_refused_before_they_are_read(service):
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 500
            yield b"x" * 500

    check_error(await service.client.post("/predict", content=endless(), headers=JSON), "payload_too_large")
    assert read <= 2000

    async def announced() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    response = await service.client.post("/predict", content=announced(), headers={**JSON, "content-length": "1001"})
    check_error(response, "payload_too_large")


async def test_body_of_exactly_the_limit_is_taken():
    service = Service({"max_body_bytes": 100})
    body = b'{"text": "a"}'
    assert (await service.post(body + b" " * (100 - len(body)))).status_code == 200
    check_error(await service.post(body + b" " * (101 - len(body))), "payload_too_large")


async def test_body_that_never_arrives_meets_the_deadline():
    service = Service({"deadline_ms": 60})

    async def stuck() -> AsyncIterator[bytes]:
        yield b'{"text":'
        await asyncio.Event().wait()

    response = await service.client.post("/predict", content=stuck(), headers=JSON)
    check_error(response, "deadline_exceeded", retryable=True)


async def test_answer_that_never_comes_meets_the_deadline():
    service = Service({"deadline_ms": 60})
    service.backend.hang = True
    check_error(await service.post({"text": "a"}), "deadline_exceeded", retryable=True)


async def test_overload_says_when_to_come_back(service):
    service.backend.failure = errors.overloaded(7)
    response = await service.post({"text": "a"})
    check_error(response, "overloaded", retryable=True)
    assert response.headers["retry-after"] == "7"


async def test_a_bug_shows_no_internals(service):
    service.backend.failure = RuntimeError("secret detail")
    response = await service.post({"text": "a"})
    check_error(response, "internal")
    assert "secret detail" not in response.text


async def test_draining_refuses_predictions_and_readiness(service):
    service.backend.view["draining"] = True
    check_error(await service.post({"text": "a"}), "draining", retryable=True)
    check_error(await service.client.get("/ready"), "draining", retryable=True)
    assert (await service.client.get("/health")).status_code == 200


async def test_health_ready_and_version_header_follow_the_view(service):
    response = await service.client.get("/health")
    assert response.json() == {"status": "ok"}
    assert response.headers["x-model-version"] == "7"
    assert (await service.client.get("/ready")).json()["status"] == "ready"
    service.backend.view["replicas"] = [{**READY, "ready": False, "version": None}]
    response = await service.client.get("/ready")
    check_error(response, "not_ready", retryable=True)
    assert response.headers["x-model-version"] == "none"
    assert (await service.client.get("/health")).status_code == 200


async def test_info_shows_the_newest_version_and_all_replicas(service):
    failed = {"version": "7", "error": "x", "fix": "y", "tries": 2, "at": 4.0}
    older = {**READY, "replica": "r0", "version": "6", "since": 1.0, "load_errors": [failed]}
    service.backend.view["replicas"].append(older)
    info = (await service.client.get("/info")).json()
    Info.model_validate(info, extra="forbid")
    assert info["model_version"] == "7"
    assert info["labels"] == ["no", "yes"]
    assert info["limits"]["max_text_chars"] == 100
    assert info["limits"]["max_length"] == 64
    assert [replica["version"] for replica in info["replicas"]] == ["7", "6"]
    assert info["replicas"][1]["load_errors"][0]["version"] == "7"


async def test_info_without_a_model(service):
    service.backend.view["replicas"] = []
    info = (await service.client.get("/info")).json()
    Info.model_validate(info, extra="forbid")
    assert info["model_version"] is None
    assert info["model_name"] == "trialgate-classifier"


@pytest.mark.parametrize("given", ["abc", "x" * 128, "with space ~!"])
async def test_request_id_is_echoed(service, given):
    assert (await service.client.get("/health", headers={"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"caf\xe9", b"tab\there"])
async def test_request_id_that_cannot_be_echoed_is_made(service, given):
    response = await service.client.get("/nowhere", headers=[(b"x-request-id", given)])
    error = check_error(response, "not_found")
    assert error["request_id"] != given.decode("latin-1")
    assert 1 <= len(error["request_id"]) <= 128


@pytest.mark.parametrize("headers", [{}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"},
                                     {"authorization": "Basic one"}, {"authorization": "one"},
                                     {"x-api-key": ""}])  # fmt: skip
async def test_keyed_routes_refuse(headers):
    service = Service({}, keys="one, two")
    for call in (
        service.post({"text": "a"}, **headers),
        service.post({"texts": ["a"]}, "/batch_predict", **headers),
        service.client.get("/info", headers=headers),
        service.client.get("/metrics", headers=headers),
    ):
        response = await call
        check_error(response, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", [{"x-api-key": "one"}, {"authorization": "Bearer two"},
                                     {"authorization": "bearer  one"}])  # fmt: skip
async def test_keyed_routes_accept(headers):
    service = Service({}, keys="one, two")
    assert (await service.post({"text": "a"}, **headers)).status_code == 200
    assert (await service.client.get("/info", headers=headers)).status_code == 200
    assert (await service.client.get("/metrics", headers=headers)).status_code == 200


async def test_open_routes_need_no_key():
    service = Service({}, keys="one")
    for path in ("/health", "/ready", "/", "/docs", "/openapi.json"):
        assert (await service.client.get(path)).status_code == 200, path


def test_a_list_of_keys_without_a_key_is_refused():
    assert digest_keys("") == []
    assert len(digest_keys("a,,b ,")) == 2
    with pytest.raises(ValueError, match="SERVE_API_KEYS"):
        digest_keys(" , ")


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_pages_need_nothing_from_elsewhere(service, path):
    response = await service.client.get(path)
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert response.headers["content-type"].startswith("text/html")
    assert "http://" not in response.text
    assert "https://" not in response.text
    check_headers(response)


async def test_openapi_is_true_to_the_code(service):
    document = (await service.client.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/predict",
        "/batch_predict",
        "/explain",
        "/health",
        "/ready",
        "/info",
        "/metrics",
    }
    predict = document["paths"]["/predict"]["post"]
    schema = predict["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["text"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["text"]["maxLength"] == 100
    assert set(predict["responses"]) == {"200", "400", "401", "413", "415", "422", "429", "500", "503", "504"}
    batch = document["paths"]["/batch_predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert batch["properties"]["texts"]["maxItems"] == 3
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                expected = {"x-request-id", "x-model-version", "Server-Timing"}
                expected |= {"Retry-After"} if status in ("429", "503") else set()
                expected |= {"WWW-Authenticate"} if status == "401" else set()
                assert set(response["headers"]) == expected
                assert all(header["required"] for header in response["headers"].values())


async def test_requests_are_counted_by_route_and_code(service):
    await service.post({"text": "a"})
    await service.post({"text": ""})
    await service.client.get("/some/random/path")
    text = service.metrics_text()
    for line in ('code="200",error="",method="POST",replica="g1",route="/predict"} 1.0',
                 'code="422",error="empty_text",method="POST",replica="g1",route="/predict"} 1.0',
                 'code="404",error="not_found",method="GET",replica="g1",route="other"} 1.0'):  # fmt: skip
        assert line in text.replace('deployment="gateway",', ""), text


async def test_health_is_answered_while_predictions_hang(service):
    service.backend.hang = True
    waiting = [asyncio.create_task(service.post({"text": "a"})) for _ in range(50)]
    await asyncio.sleep(0)
    for path in ("/health", "/ready", "/info"):
        assert (await service.client.get(path)).status_code == 200
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def test_every_code_has_its_status_and_an_envelope():
    for code in ErrorCode:
        assert 400 <= code.status < 600
        assert ServiceError(code, "why").envelope("id")["error"]["code"] == code.value
