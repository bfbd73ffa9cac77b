"""POST /explain without Ray: the answer, its refusals, its own deadline, and what /info and /openapi.json say of it."""

from __future__ import annotations

import json

import jsonschema
import pytest

from serve_app import errors
from tests.unit.serving.test_api import Service, check_error, check_headers


@pytest.fixture
def service() -> Service:
    return Service({"max_text_chars": 100, "deadline_ms": 5000, "explain_deadline_ms": 30_000})


async def test_an_explanation_is_a_prediction_and_its_words(service):
    response = await service.post({"text": "oh yes"}, "/explain")
    assert response.json() == {
        "label": "yes",
        "score": 0.75,
        "probabilities": {"no": 0.25, "yes": 0.75},
        "truncated": False,
        "model_version": "8",
        "explained_label": "yes",
        "tokens": [
            {"text": "oh", "start": 0, "end": 2, "attribution": -0.5},
            {"text": "yes", "start": 3, "end": 6, "attribution": 1.7},
        ],
        "baseline": "nothing",
        "log_odds": 1.1,
        "baseline_log_odds": -0.1,
        "completeness_gap": 0.0,
    }
    check_headers(response)
    assert response.headers["x-model-version"] == "8"
    assert "explain;dur=250.00" in response.headers["server-timing"]
    assert service.backend.explained == [("oh yes", True, None)]


async def test_offsets_count_characters_not_bytes(service):
    tokens = (await service.post({"text": "🎬é yes"}, "/explain")).json()["tokens"]
    assert [token["text"] for token in tokens] == ["🎬é", "yes"]


async def test_the_label_may_be_given(service):
    assert (await service.post({"text": "oh yes", "label": "no"}, "/explain")).json()["explained_label"] == "no"
    await service.post({"text": "oh yes", "label": None, "truncate": False}, "/explain")
    assert service.backend.explained == [("oh yes", True, "no"), ("oh yes", False, None)]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "bad_json"),
        (b"{}", "invalid_request"),
        (b'{"text": "a", "labels": ["no"]}', "invalid_request"),
        (b'{"text": "a", "label": 1}', "invalid_request"),
        (b'{"texts": ["a"]}', "invalid_request"),
        (b'{"text": " "}', "empty_text"),
        (json.dumps({"text": "a" * 101}).encode(), "text_too_long"),
    ],
)
async def test_it_refuses_as_predict_does(service, body, code):
    check_error(await service.post(body, "/explain"), code)
    assert service.backend.explained == []


async def test_it_needs_a_key_as_predict_does():
    service = Service({}, keys="one")
    check_error(await service.post({"text": "a"}, "/explain"), "unauthorized")
    assert (await service.post({"text": "a"}, "/explain", **{"x-api-key": "one"})).status_code == 200


async def test_draining_and_overload_are_told(service):
    service.backend.failure = errors.overloaded(9)
    response = await service.post({"text": "a"}, "/explain")
    check_error(response, "overloaded", retryable=True)
    assert response.headers["retry-after"] == "9"
    service.backend.view["draining"] = True
    check_error(await service.post({"text": "a"}, "/explain"), "draining", retryable=True)


async def test_it_has_a_deadline_of_its_own(service):
    await service.post({"text": "a"}, "/explain")
    assert 5 < service.backend.remaining_s <= 30
    short = Service({"deadline_ms": 5000, "explain_deadline_ms": 60})
    short.backend.hang = True
    error = check_error(await short.post({"text": "a"}, "/explain"), "deadline_exceeded", retryable=True)
    assert "0.06 s" in error["message"]


async def test_it_can_be_switched_off():
    service = Service({"explain_enabled": False})
    check_error(await service.post({"text": "a"}, "/explain"), "not_found")
    assert (await service.client.get("/info")).json()["explanations"] is None
    assert "/explain" not in (await service.client.get("/openapi.json")).json()["paths"]


async def test_info_tells_its_limits(service):
    explanations = (await service.client.get("/info")).json()["explanations"]
    assert explanations == {"max_tokens": 256, "steps": 32, "deadline_ms": 30_000, "max_concurrent": 4}


async def test_the_openapi_document_describes_what_is_sent(service):
    document = (await service.client.get("/openapi.json")).json()
    operation = document["paths"]["/explain"]["post"]
    asked = operation["requestBody"]["content"]["application/json"]["schema"]
    assert set(asked["properties"]) == {"text", "truncate", "label"}
    reply = operation["responses"]["200"]["content"]["application/json"]["schema"]
    body = (await service.post({"text": "oh yes"}, "/explain")).json()
    jsonschema.validate(body, {**reply, "components": document["components"]})
    schema = document["components"]["schemas"]["ExplainedPrediction"]
    assert set(schema["required"]) == set(body)
    for response in operation["responses"].values():
        assert "Server-Timing" in response["headers"]
    assert "Retry-After" in operation["responses"]["429"]["headers"]


async def test_requests_are_counted_under_its_name(service):
    await service.post({"text": "a"}, "/explain")
    assert 'route="/explain"' in service.metrics_text()
