"""The Python client against the running service, and the block of docs/serving.md as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serve_app import smoke
from serve_app.client import AsyncClient, Client, InvalidRequest, RetryPolicy, Unreachable
from tests.integration.serving.world import Service, free_port

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "serving.md"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIALGATE_API_KEY", raising=False)


def test_many_texts_in_several_batches(service: Service):
    texts = [f"{kind} number {number} " + "x" * 1900 for number in range(10) for kind in ("a good", "a bad")]
    with Client(service.url) as client:  # 8 texts a batch, and 20,000 bytes
        answers = client.predict_many(texts)
        info = client.info()
    assert [answer.label for answer in answers] == ["positive", "negative"] * 10
    assert {answer.model_version for answer in answers} == {info.model_version} == {service.first_version}
    assert info.limits.max_client_batch_size == 8
    assert info.labels == ("negative", "positive")


async def test_many_texts_in_asyncio(service: Service):
    async with AsyncClient(service.url) as client:
        assert await client.ready()
        answers = await client.predict_many(["a good plot", "boring"] * 25)
        assert [answer.label for answer in answers] == ["positive", "negative"] * 25
        assert (await client.predict("good")).label == "positive"


def test_more_at_once_than_is_admitted_is_answered_in_the_end(service: Service):
    texts = ["good " + "movie " * 60, "bad"] * 200  # 50 batches, 64 texts admitted by each of two replicas
    with Client(service.url, concurrency=40, deadline_s=60) as client:
        labels = [answer.label for answer in client.predict_many(texts)]
    assert labels == ["positive", "negative"] * 200


def test_the_error_says_which_texts_it_was(service: Service):
    texts = ["good"] * 20
    texts[13] = " "
    with Client(service.url) as client, pytest.raises(InvalidRequest) as failed:
        client.predict_many(texts)
    assert failed.value.code == "empty_text"
    assert failed.value.places == range(8, 16)


def test_nobody_there():
    with Client(f"http://127.0.0.1:{free_port()}", retry=RetryPolicy(max_retries=1)) as client:
        assert client.ready() is False
        with pytest.raises(Unreachable):
            client.predict("good")


def test_the_block_of_the_document_does_what_it_says(service: Service, capsys: pytest.CaptureFixture[str]):
    (block,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert "http://127.0.0.1:8000" in block
    exec(compile(block.replace("http://127.0.0.1:8000", service.url), str(DOCUMENT), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "positive"
    assert len(lines) == 102
    assert f"negative by version {service.first_version}: an awful book" in lines[2]
    assert lines[-1].startswith("text_too_long ")


def test_the_smoke_test_passes_on_the_running_service_and_fails_for_another_version(
    service: Service, capsys: pytest.CaptureFixture[str]
):
    version = service.first_version
    assert smoke.main(["--url", service.url, "--version", version, "--timeout", "30"]) == 0
    assert f"serve version {version}" in capsys.readouterr().out
    assert smoke.main(["--url", service.url, "--version", "999", "--timeout", "0.1"]) == 1
    assert "expected version 999 on every replica" in capsys.readouterr().err
