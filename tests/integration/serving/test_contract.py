"""The HTTP part of the contract, line by line, through Ray Serve with two gateways and two classifiers."""

from __future__ import annotations

import concurrent.futures
import json
import select
import socket
import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve_app.errors import ErrorCode
from tests.integration.serving.world import Service

JSON = {"content-type": "application/json"}


def check_headers(response: httpx.Response) -> None:
    assert len(response.headers.get_list("x-request-id")) == 1
    assert len(response.headers.get_list("x-model-version")) == 1
    assert "total;dur=" in response.headers["server-timing"]


def check_error(response: httpx.Response, code: str) -> dict[str, Any]:
    assert response.status_code == ErrorCode(code).status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert error["code"] == code
    assert error["retryable"] is ErrorCode(code).retryable
    assert error["request_id"] == response.headers["x-request-id"]
    check_headers(response)
    return error


def test_before_the_first_promotion_the_service_lives_and_is_not_ready(service: Service):
    assert service.before["/health"].json() == {"status": "ok"}
    check_error(service.before["/ready"], "not_ready")
    check_error(service.before["/predict"], "not_ready")
    info = service.before["/info"].json()
    assert info["model_version"] is None
    assert [replica["ready"] for replica in info["replicas"]] == [False, False]
    assert service.before["/"].status_code == 200
    assert "trialgate_requests_total" in service.before["/metrics"].text
    assert {reply.headers["x-model-version"] for reply in service.before.values()} == {"none"}


def test_predict(service: Service):
    response = service.predict("such a good movie")
    body = response.json()
    assert set(body) == {"label", "score", "probabilities", "truncated", "model_version"}
    assert body["label"] == "positive"
    assert body["score"] == body["probabilities"]["positive"]
    assert sum(body["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert body["truncated"] is False
    assert body["model_version"] == response.headers["x-model-version"]
    check_headers(response)
    assert "forward;dur=" in response.headers["server-timing"]
    assert service.predict("such a bad movie").json()["label"] == "negative"


def test_batch_predict_in_order_by_one_version(service: Service):
    texts = ["good", "bad", "good book", "awful", "a good plot", "boring", "the end", "good"]
    body = service.client.post("/batch_predict", json={"texts": texts}).json()
    expected = ["positive" if "good" in text else "negative" for text in texts]
    assert [prediction["label"] for prediction in body["predictions"]] == expected
    assert {prediction["model_version"] for prediction in body["predictions"]} == {body["model_version"]}


def test_truncation(service: Service):
    long = "good " + "movie " * 100  # max_length is 64
    assert service.predict(long).json()["truncated"] is True
    error = check_error(service.predict(long, truncate=False), "text_too_long")
    assert "64" in error["message"]
    fits = "movie " * 61 + "good"  # with [CLS] and [SEP] exactly 64
    assert service.predict(fits, truncate=False).json()["truncated"] is False
    check_error(service.predict("movie " + fits, truncate=False), "text_too_long")
    response = service.client.post("/batch_predict", json={"texts": ["fine", long], "truncate": False})
    assert "Text 2 of 2" in check_error(response, "text_too_long")["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "bad_json"),
        (b'{"text": "\xff"}', "bad_json"),
        (b'{"text": "\\ud83d"}', "invalid_request"),
        (b'{"text": 1}', "invalid_request"),
        (b'{"text": "a", "unknown": 1}', "invalid_request"),
        (b'{"text": "a", "truncate": "no"}', "invalid_request"),
        (b'{"text": " "}', "empty_text"),
        (json.dumps({"text": "a" * 2001}).encode(), "text_too_long"),
        (b'{"text": "' + b"a" * 20_000 + b'"}', "payload_too_large"),
    ],
)
def test_predict_errors(service: Service, body: bytes, code: str):
    check_error(service.client.post("/predict", content=body, headers=JSON), code)


def test_other_errors(service: Service):
    check_error(service.client.get("/nowhere"), "not_found")
    check_error(service.client.get("/predict"), "method_not_allowed")
    check_error(service.client.put("/health"), "method_not_allowed")
    check_error(service.client.post("/predict", content=b"{}"), "unsupported_media_type")
    check_error(service.client.post("/batch_predict", json={"texts": ["a"] * 9}), "batch_too_large")
    check_error(service.client.post("/batch_predict", json={"texts": []}), "invalid_request")


@pytest.mark.parametrize("text", ["a good\u0000 movie", "good 日本語 🎬", "good " + "́" * 300, "x" * 2000])
def test_unusual_texts(service: Service, text: str):
    assert service.predict(text).status_code == 200


def connect(service: Service) -> socket.socket:
    return socket.create_connection((service.client.base_url.host, service.client.base_url.port), timeout=20)


def receive(connection: socket.socket) -> bytes:
    """One whole reply of ours: they all end in two braces."""
    reply = b""
    while not reply.endswith(b"}}"):
        more = connection.recv(65536)
        assert more, reply
        reply += more
    return reply


@pytest.mark.parametrize("length", ["Transfer-Encoding: chunked", "Content-Length: 50000000"])
def test_endless_body_is_refused_on_the_way(service: Service, length: str):
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
    chunk = b"3e8\r\n" + b"x" * 1000 + b"\r\n" if "chunked" in length else b"x" * 1000
    with connect(service) as connection:
        connection.sendall(head.encode())
        for _ in range(2000):  # of 50,000
            connection.sendall(chunk)
            if select.select([connection], [], [], 0.005)[0]:
                break
        reply = receive(connection)
    assert reply.startswith(b"HTTP/1.1 413")
    assert b"payload_too_large" in reply


def test_body_that_never_arrives_is_504_within_the_deadline(service: Service):
    with connect(service) as connection:
        began = time.monotonic()
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                           b"Content-Length: 100\r\n\r\n{")  # fmt: skip
        reply = receive(connection)
        took = time.monotonic() - began
    assert reply.startswith(b"HTTP/1.1 504")
    assert b"deadline_exceeded" in reply
    assert 2.5 < took < 6


@pytest.mark.parametrize("given", ["an-id", "x" * 128, "x" * 129, "x" * 4000, "tab\tinside", ""])
def test_exactly_one_request_id(service: Service, given: str):
    echoed = 1 <= len(given) <= 128 and "\t" not in given
    for path, status in (("/health", 200), ("/nowhere", 404)):
        response = service.client.get(path, headers={"x-request-id": given})
        assert response.status_code == status
        (found,) = response.headers.get_list("x-request-id")
        assert (found == given) is echoed
        assert 1 <= len(found) <= 128


def test_request_id_is_made(service: Service):
    ids = {service.client.get("/health").headers["x-request-id"] for _ in range(5)}
    assert len(ids) == 5


def test_overload_is_429_and_batches_are_whole(service: Service):
    texts = ["good " + "movie " * 60, "bad"] * 4

    def send(_: int) -> httpx.Response:
        return httpx.post(f"{service.url}/batch_predict", json={"texts": texts}, timeout=30)

    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        replies = list(pool.map(send, range(120)))
    for reply in replies:
        if reply.status_code == 429:
            check_error(reply, "overloaded")
            assert int(reply.headers["retry-after"]) >= 1
        elif reply.status_code == 504:  # a machine that is busy with something else as well
            check_error(reply, "deadline_exceeded")
        else:
            labels = [prediction["label"] for prediction in reply.json()["predictions"]]
            assert labels == ["positive", "negative"] * 4
    assert sum(reply.status_code == 200 for reply in replies) >= 1


def test_info_and_ready_are_about_all_replicas_whichever_gateway_answers(service: Service):
    for _ in range(10):  # Serve picks a gateway each time
        info = service.info()
        assert len({replica["replica"] for replica in info["replicas"]}) == 2
        assert {replica["version"] for replica in info["replicas"]} == {service.first_version}
        ready = service.client.get("/ready").json()
        assert ready == {"status": "ready", "ready_replicas": 2, "replicas": 2}
    assert info["model_version"] == service.first_version
    assert info["model_name"] == "trialgate-classifier"
    assert info["labels"] == ["negative", "positive"]
    assert info["run_id"]
    assert info["f1"] == 0.9
    assert info["precision"] in ("fp32", "bf16")
    assert info["application_version"]
    assert info["limits"]["max_text_chars"] == 2000
    assert info["limits"]["max_length"] == 64


def scrape(service: Service) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = service.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    series = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert sample.labels["deployment"] in ("gateway", "classifier")
            assert sample.labels["replica"]
            if family.type in ("counter", "histogram"):
                series[sample.name, frozenset(sample.labels.items())] = sample.value
    return series


def total(series: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return sum(value for (found, at), value in series.items() if found == name and set(labels.items()) <= at)


def test_metrics_show_everything_at_once_and_never_go_backwards(service: Service):
    before = scrape(service)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        running = [pool.submit(service.predict) for _ in range(120)]
        last = before
        while not all(future.done() for future in running):
            now = scrape(service)
            assert set(last) <= set(now)
            assert all(now[series] >= value for series, value in last.items())
            last = now
    assert {future.result().status_code for future in running} == {200}
    after = scrape(service)
    for name, labels in (
        ("trialgate_requests_total", {"route": "/predict", "code": "200"}),
        ("trialgate_texts_total", {"version": service.first_version}),
        ("trialgate_queue_seconds_count", {}),
    ):
        assert total(after, name, **labels) - total(before, name, **labels) == 120, name
    assert total(after, "trialgate_batch_tokens_sum") > total(before, "trialgate_batch_tokens_sum")
    replicas = {dict(at)["replica"] for name, at in after if name == "trialgate_requests_total"}
    assert len(replicas) == 2


def test_health_does_not_queue_behind_predictions(service: Service):
    texts = ["good " + "movie " * 60] * 8
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        running = [pool.submit(service.client.post, "/batch_predict", json={"texts": texts}) for _ in range(200)]
        own = [float(service.client.get(path).headers["server-timing"].rpartition("dur=")[2])
               for _ in range(5) for path in ("/health", "/ready", "/info")]  # fmt: skip
        for future in running:
            future.result()
    assert max(own) < 1000  # milliseconds inside the gateway, on a machine whose cores are all busy


def test_page_and_documentation(service: Service):
    page = service.client.get("/")
    assert "<textarea" in page.text
    assert "https://" not in page.text
    assert service.client.get("/docs").status_code == 200
    assert "/batch_predict" in service.client.get("/openapi.json").json()["paths"]
