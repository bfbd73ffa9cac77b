"""POST /explain over HTTP, on two real replicas: the answer, its refusals, and predictions beside it."""

from __future__ import annotations

import concurrent.futures
import time

import httpx
import pytest

from tests.integration.serving.test_contract import JSON, check_error, check_headers
from tests.integration.serving.world import Service


def explain(service: Service, text: str, **fields: object) -> httpx.Response:
    return service.client.post("/explain", json={"text": text, **fields})


def test_the_word_that_decides_is_named(service: Service):
    text = "🎬 the plot was GOOD, it was"
    response = explain(service, text)
    body = response.json()
    check_headers(response)
    assert body["label"] == body["explained_label"] == "positive"
    assert body["model_version"] == response.headers["x-model-version"] == service.first_version
    assert body["probabilities"] == pytest.approx(service.predict(text).json()["probabilities"], abs=1e-3)
    assert [text[token["start"] : token["end"]] for token in body["tokens"]] == [t["text"] for t in body["tokens"]]
    strongest = max(body["tokens"], key=lambda token: token["attribution"])
    assert strongest["text"] == "GOOD"
    total = sum(token["attribution"] for token in body["tokens"])
    assert total == pytest.approx(body["log_odds"] - body["baseline_log_odds"] + body["completeness_gap"], abs=1e-4)
    assert abs(body["completeness_gap"]) < 0.1 * abs(total)
    assert "explain;dur=" in response.headers["server-timing"]


def test_refusals(service: Service):
    assert "negative, positive" in check_error(explain(service, "good", label="?"), "invalid_request")["message"]
    check_error(explain(service, "good", more=1), "invalid_request")
    check_error(explain(service, " "), "empty_text")
    long = "good " + "movie " * 100
    check_error(explain(service, long, truncate=False), "text_too_long")
    assert explain(service, long).json()["truncated"] is True
    check_error(service.client.post("/explain", content=b"{", headers=JSON), "bad_json")
    check_error(service.client.get("/explain"), "method_not_allowed")


def test_many_explanations_hold_up_no_prediction_and_are_refused_beyond_their_admission(service: Service):
    text = "good " + "movie " * 60
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(explain, service, text) for _ in range(60)]
        predicted = []
        while not all(future.done() for future in asked):
            began = time.monotonic()
            predicted.append((service.predict("a good plot").status_code, time.monotonic() - began))
        replies = [future.result() for future in asked]
    assert {status for status, _ in predicted} == {200}
    assert {reply.status_code for reply in replies} <= {200, 429}
    assert sum(reply.status_code == 200 for reply in replies) >= 2
    for reply in replies:
        if reply.status_code == 429:
            check_error(reply, "overloaded")
            assert int(reply.headers["retry-after"]) >= 1
    assert explain(service, "good").status_code == 200
