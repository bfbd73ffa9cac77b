"""The page and the documentation in a headless Chromium, on the running service; and with keys, on a fake one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn

from configs.schema import Settings
from serve_app import errors
from serve_app.api import create_api, digest_keys
from serve_app.metrics import GatewayMetrics
from tests.browser import Page, browser_page
from tests.integration.serving.world import Service, free_port
from tests.unit.serving.test_api import EchoBackend

SHOWN = "document.querySelector('#{0}').checkVisibility()"


@contextlib.asynccontextmanager
async def page_of(url: str, width: int = 1000) -> AsyncIterator[Page]:
    """The page, opened; fails when it complained or asked anybody but the service."""
    async with browser_page() as page:
        await page.open(url, width)
        yield page
        assert page.complaints == []
        assert [address for address in page.asked if not address.startswith((url, "data:"))] == []


async def test_one_text(service: Service):
    async with page_of(service.url) as page:
        await page.until("document.querySelector('#model').innerText.includes('version')")
        assert await page.text("#model") == (
            f"Model trialgate-classifier, version {service.first_version}, F1 0.900; labels: negative, positive."
        )
        assert not await page.visible("#key-card")
        await page.write("#text", "a good <b>plot</b> 🎬")
        assert await page.text("#count") == "20 of at most 2,000 characters"
        await page.click("#classify")
        await page.until(SHOWN.format("result"))
        assert (await page.text("#answer")).startswith("positive, ")
        assert "negative" in await page.text("#bars")
        assert await page.text("#facts") == f"by version {service.first_version}"
        assert not await page.visible("#explanation")
        assert (await page.screenshot()).startswith(b"\x89PNG")


async def test_an_explanation(service: Service):
    async with page_of(service.url) as page:
        await page.until(SHOWN.format("explain"))
        text = "🎬 such a <i>good</i> plot"
        await page.write("#text", text)
        await page.click("#explain")
        await page.until(SHOWN.format("explanation"))
        assert await page.text("#words") == text
        strongest = (
            "[...document.querySelectorAll('mark')].sort((a, b) => parseFloat(b.title.slice(1)) - "
            "parseFloat(a.title.slice(1)))[0].innerText"
        )
        assert await page.run(strongest) == "good"
        assert "for positive" in await page.text(".legend")
        await page.run("document.querySelector('#of').value = 'negative'")
        await page.click("#explain")
        await page.until(
            f"{SHOWN.format('explanation')} && document.querySelector('#for').innerText === 'for negative'"
        )
        await page.run("document.querySelector('#explanation details').open = true")
        assert (await page.text("#figures")).startswith("good\t−")


async def test_several_texts(service: Service):
    async with page_of(service.url) as page:
        await page.write("#texts", "good\n\n <i>awful</i>\nthe end")
        await page.until("document.querySelector('#lines').innerText === '3 of at most 8 texts'")
        await page.click("#classify-all")
        await page.until(SHOWN.format("table"))
        rows = (await page.text("#rows")).splitlines()
        assert [row.split("\t")[0].strip() for row in rows] == ["good", "<i>awful</i>", "the end"]
        assert [row.split("\t")[1] for row in rows] == ["positive", "negative", "negative"]


async def test_refusals_are_words(service: Service):
    async with browser_page() as page:  # Chromium itself logs every status above 399
        await page.open(service.url)
        await page.write("#text", "a" * 2001)
        await page.click("#classify")
        await page.until(SHOWN.format("one-error"))
        assert "2001 characters, at most 2000" in await page.text("#one-error")
        assert not await page.visible("#result")
        await page.write("#texts", "\n".join(["good"] * 9))
        await page.click("#classify-all")
        await page.until(SHOWN.format("many-error"))
        assert "at most 8" in await page.text("#many-error")
        await page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0,
                        uploadThroughput=0)  # fmt: skip
        await page.write("#text", "good")
        await page.click("#classify")
        await page.until("document.querySelector('#one-error').innerText.includes('cannot be reached')")


async def test_it_fits_a_phone_and_every_field_has_a_name(service: Service):
    async with page_of(service.url, width=360) as page:
        await page.until(SHOWN.format("explain"))
        await page.write("#text", "good " + "x" * 200)
        await page.click("#explain")
        await page.until(SHOWN.format("explanation"))
        assert await page.run("document.documentElement.scrollWidth") == 360
        unnamed = (
            "[...document.querySelectorAll('textarea, input, select, button')].filter("
            "field => !field.labels?.length && !field.ariaLabel && !field.innerText).map(field => field.id)"
        )
        assert await page.run(unnamed) == []


async def test_the_documentation_shows_every_route(service: Service):
    async with page_of(f"{service.url}/docs") as page:
        page.asked = [address for address in page.asked if not address.endswith("/openapi.json")]
        await page.until("document.querySelectorAll('details').length > 0")
        await page.run("document.querySelectorAll('details').forEach(details => details.open = true)")
        shown = await page.text("body")
        for path in service.client.get("/openapi.json").json()["paths"]:
            assert path in shown
        for words in ("max_client_batch_size", "array of Token", "text_too_long", "curl http://", "request_id"):
            assert words in shown
        assert "undefined" not in shown


@pytest.fixture
async def keyed() -> AsyncIterator[tuple[str, EchoBackend]]:
    """A fake service that asks for the key "secret"."""
    backend, port = EchoBackend(), free_port()
    api = create_api(Settings(), backend, GatewayMetrics(), key_digests=digest_keys("secret"))
    server = uvicorn.Server(uvicorn.Config(api, port=port, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - there is no event to wait for, seen from outside
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{port}", backend
    server.should_exit = True
    await serving


async def test_a_key_is_asked_for_and_kept_nowhere(keyed: tuple[str, EchoBackend]):
    url, backend = keyed
    async with browser_page() as page:
        await page.open(url)
        await page.until(SHOWN.format("key-card"))
        assert "enter it above" in await page.text("#model")
        await page.write("#key", "wrong")
        await page.until("document.querySelector('#model').innerText.includes('not accepted')")
        await page.write("#key", "secret")
        await page.until("document.querySelector('#model').innerText.includes('version 7')")
        backend.failure = errors.overloaded(7)
        await page.click("#classify")
        await page.until(SHOWN.format("one-error"))
        assert "try again in 7 s" in await page.text("#one-error")
        backend.failure = None
        await page.click("#classify")
        await page.until(SHOWN.format("result"))
        assert await page.run("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        await page.open(url)
        await page.until(SHOWN.format("key-card"))
        assert await page.run("document.querySelector('#key').value") == ""
