"""A headless Chromium, driven over its DevTools protocol: pages as people see them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

NEEDS_CHROMIUM = "needs Chromium: no chromium, chromium-browser or google-chrome in PATH"
_LIMIT_S = 60.0


class Page:
    """One tab. ``complaints``: what the page logged as an error, threw, or was not allowed to load."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.complaints: list[str] = []
        self.asked: list[str] = []  # every address that it asked for
        self._reader = asyncio.create_task(self._read())

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        self._number += 1
        reply = self._replies[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async with asyncio.timeout(_LIMIT_S):
            return await reply

    async def open(self, url: str, width: int = 1000, height: int = 900, dark: bool = False) -> None:
        """Opens ``url`` in a window of this size and returns when it is loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                        mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        """Waits for a JavaScript expression to be true."""
        async with asyncio.timeout(_LIMIT_S):
            while not await self.run(condition):  # noqa: ASYNC110 - there is no event to wait for, seen from outside
                await asyncio.sleep(0.02)

    async def text(self, selector: str) -> str:
        """What a person reads there."""
        return str(await self.run(f"document.querySelector({selector!r}).innerText"))

    async def visible(self, selector: str) -> bool:
        """Whether it is shown."""
        return bool(await self.run(f"document.querySelector({selector!r}).checkVisibility()"))

    async def write(self, selector: str, value: str) -> None:
        """Types ``value`` into a field in place of what is there."""
        await self.run(f"(document.querySelector({selector!r}).focus(), document.querySelector({selector!r}).select())")
        await self.call("Input.insertText", text=value)
        await self.run(f"document.querySelector({selector!r}).dispatchEvent(new Event('change'))")

    async def click(self, selector: str) -> None:
        """Clicks it."""
        await self.run(f"document.querySelector({selector!r}).click()")

    async def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    async def _read(self) -> None:
        async for message in self._socket:
            content = message.json()
            if "id" in content:
                reply = self._replies.pop(content["id"])
                if "error" in content:
                    reply.set_exception(RuntimeError(str(content["error"])))
                else:
                    reply.set_result(content["result"])
            else:
                self._take(content["method"], content["params"])

    def _take(self, event: str, content: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.asked.append(content["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(content["exceptionDetails"]))
        elif event == "Log.entryAdded" and content["entry"]["level"] == "error":
            self.complaints.append(content["entry"]["text"])


@contextlib.asynccontextmanager
async def browser_page() -> AsyncIterator[Page]:
    """A tab of a browser of its own. Skips the test where there is no browser."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip(NEEDS_CHROMIUM)
    with tempfile.TemporaryDirectory(prefix="tg-chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-extensions", "--remote-debugging-port=0", f"--user-data-dir={profile}",
            "about:blank", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            port = await _port_of(process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tabs = await answer.json()
                address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _port_of(process: asyncio.subprocess.Process) -> str:
    """It says on standard error where it listens."""
    assert process.stderr is not None
    async with asyncio.timeout(_LIMIT_S):
        async for line in process.stderr:
            _, found, address = line.decode(errors="replace").partition("DevTools listening on ws://")
            if found:
                return address.partition(":")[2].partition("/")[0]
    raise AssertionError("Chromium ended without listening")
