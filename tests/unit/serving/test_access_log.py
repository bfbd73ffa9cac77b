"""The access log: what a line has, what it never has, and where it goes in a replica of Serve."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import logging.handlers
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.access_log import access_line, access_logger, flush_access_log, log_access, log_to_replica_file
from serve_app.edge import Exchange
from tests.unit.serving.test_api import Service

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=datetime.UTC)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """What has been logged since, read."""
    caplog.set_level(logging.INFO, access_logger.name)
    return lambda: [json.loads(record.getMessage()) for record in caplog.records if record.name == access_logger.name]


def test_a_line_has_all_that_is_known_of_a_request():
    exchange = Exchange("an-id", 0.0, 1.0, {"body": 0.0001234, "forward": 0.02}, "7", "", 3, 99)
    assert json.loads(access_line(exchange, "/predict", "POST", 200, 0.0254321, NOW)) == {
        "time": "2026-01-02T03:04:05.678Z",
        "request_id": "an-id",
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "error": None,
        "model_version": "7",
        "texts": 3,
        "body_bytes": 99,
        "ms": {"body": 0.123, "forward": 20.0, "total": 25.432},
    }


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=128))
def test_no_request_id_breaks_out_of_its_line(request_id: str):
    line = access_line(Exchange(request_id, 0.0, 1.0), "other", "GET", 404, 0.1, NOW)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["request_id"] == request_id


async def test_lines_of_answers_and_refusals(lines):
    service = Service({"max_body_bytes": 100}, keys="secretkey")
    key = {"x-api-key": "secretkey"}
    await service.post({"text": "secrettext, yes"}, **key, **{"x-request-id": "mine"})
    await service.post({"texts": ["secrettext", "n"]}, "/batch_predict", **key)
    await service.post({"text": "secrettext"}, **{"x-api-key": "wrongsecret"})
    await service.post(b"secrettext" * 20, **key)
    await service.post(b"{secrettext", **key)
    await service.client.request("SECRET", '/secret/%0A{"status":200}?secret')
    told = lines()
    assert [(line["route"], line["method"], line["status"], line["error"]) for line in told] == [
        ("/predict", "POST", 200, None),
        ("/batch_predict", "POST", 200, None),
        ("/predict", "POST", 401, "unauthorized"),
        ("/predict", "POST", 413, "payload_too_large"),
        ("/predict", "POST", 400, "bad_json"),
        ("other", "other", 404, "not_found"),
    ]
    assert [line["texts"] for line in told] == [1, 2, 0, 0, 0, 0]
    assert [line["model_version"] for line in told] == ["8", "8", None, None, None, None]
    assert [line["body_bytes"] for line in told][:1] == [len('{"text": "secrettext, yes"}')]
    assert list(told[0]["ms"]) == ["body", "validate", "classify", "forward", "total"]
    assert told[0]["request_id"] == "mine"
    assert "secret" not in json.dumps(told).lower()


async def test_a_deadline_and_a_bug_are_logged_too(lines):
    service = Service({"deadline_ms": 60})
    service.backend.failure = ZeroDivisionError("secrettext")
    await service.post({"text": "y"})
    service.backend.hang = True
    await service.post({"text": "y"})
    assert [(line["status"], line["error"]) for line in lines()] == [(500, "internal"), (504, "deadline_exceeded")]
    assert lines()[1]["ms"]["total"] >= 60


async def test_it_can_be_switched_off(lines):
    service = Service({"access_log": False})
    assert (await service.post({"text": "y"})).status_code == 200
    assert lines() == []


@pytest.fixture
def replica_log(tmp_path: Path) -> Iterator[Path]:
    """Handlers as Serve sets them up in a replica in throughput-optimized mode."""
    serve_logger, file = logging.getLogger("ray.serve"), logging.FileHandler(tmp_path / "replica.log")
    file.setFormatter(logging.Formatter("%(levelname)s replica -- %(message)s"))
    handler = logging.handlers.MemoryHandler(1000, target=file)
    changed = (serve_logger, access_logger, logging.getLogger("serve_app"))
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in changed]
    for logger in changed:
        logger.handlers = [handler] if logger is serve_logger else []
    serve_logger.setLevel(logging.INFO)
    yield tmp_path / "replica.log"
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    handler.close()
    file.close()


def test_lines_go_into_the_replicas_file_at_once_and_as_they_are(replica_log: Path):
    log_to_replica_file()
    log_to_replica_file()  # a second time changes nothing
    log_access(Exchange("an-id", 0.0, 1.0), "/predict", "POST", 200, 0.1)
    (line,) = replica_log.read_text().splitlines()
    assert json.loads(line)["request_id"] == "an-id"
    logging.getLogger("ray.serve").info("something else")
    logging.getLogger("ray.serve").handlers[0].flush()
    assert replica_log.read_text().splitlines()[1:] == ["INFO replica -- something else"]


async def test_on_an_event_loop_lines_go_together_and_in_order(replica_log: Path):
    def lines() -> list[str]:
        return replica_log.read_text().splitlines()

    log_to_replica_file()
    for number in range(3):
        log_access(Exchange(f"id-{number}", 0.0, 1.0), "/predict", "POST", 200, 0.1)
    assert lines() == []
    async with asyncio.timeout(10):
        while not lines():  # noqa: ASYNC110 - a file has no event to wait for
            await asyncio.sleep(0.01)
    log_access(Exchange("id-3", 0.0, 1.0), "/predict", "POST", 200, 0.1)
    flush_access_log()  # as a replica does that stops
    assert [json.loads(line)["request_id"] for line in lines()] == ["id-0", "id-1", "id-2", "id-3"]


def test_what_the_application_logs_goes_there_too_in_serves_format(replica_log: Path):
    log_to_replica_file()
    logging.getLogger("serve_app.edge").error("request an-id failed")
    logging.getLogger("serve_app.mode").info("serving behind HAProxy")
    assert replica_log.read_text().splitlines() == [
        "ERROR replica -- request an-id failed",
        "INFO replica -- serving behind HAProxy",
    ]


def test_without_a_file_of_serve_lines_go_to_standard_error(replica_log: Path, capsys: pytest.CaptureFixture[str]):
    logging.getLogger("ray.serve").handlers = []
    log_to_replica_file()
    log_access(Exchange("an-id", 0.0, 1.0), "/predict", "POST", 200, 0.1)
    assert json.loads(capsys.readouterr().err)["request_id"] == "an-id"
