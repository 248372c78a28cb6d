# SPDX-License-Identifier: GPL-3.0-or-later
"""A headless Chromium, driven over its own protocol (CDP): no further package is needed.

async with Browser.start() as browser:
    page = await browser.open(url)
    await page.until("document.querySelector('#boards li')")
    await page.press("Tab")
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_KEYS = {
    "Tab": (9, ""),
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Space": (32, " "),
}


def find_chromium() -> str:
    """The browser's program; the test is skipped where this machine has none."""
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        found = shutil.which(name) if name else None
        if found:
            return found
    pytest.skip("no Chromium here: apt-get install chromium, or name one in CHROMIUM")


class Page:
    """One tab. complaints: errors and refusals that the browser told."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._count = 0
        self.complaints: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        self._count += 1
        reply = asyncio.get_running_loop().create_future()
        self._replies[self._count] = reply
        await self._socket.send_json({"id": self._count, "method": method, "params": parameters})
        result: dict[str, Any] = await asyncio.wait_for(reply, 20)
        return result

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        told = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in told:
            raise AssertionError(f"{script}: {json.dumps(told['exceptionDetails'])[:500]}")
        return told["result"].get("value")

    async def until(self, script: str, *, limit_s: float = 20.0) -> Any:
        """Wait until an expression is true; its value."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while True:
                    value = await self.run(script)
                    if value:
                        return value
                    await asyncio.sleep(0.05)
        text = await self.run("document.body.innerText")
        raise AssertionError(f"never true: {script}\n{self.complaints}\n{text}")

    async def click(self, selector: str) -> None:
        """Press the first element that a selector finds."""
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def press(self, key: str, *, shift: bool = False) -> None:
        """A key, as a keyboard sends it."""
        code, text = _KEYS[key]
        common = {
            "key": " " if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code,
            "modifiers": 8 if shift else 0,
        }  # fmt: skip
        kind = "keyDown" if text else "rawKeyDown"
        await self.call("Input.dispatchKeyEvent", type=kind, text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def appear(
        self, *, width: int, height: int, dark: bool = False, phone: bool = False
    ) -> None:
        """The size of the window, and what the person prefers."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        """A PNG of what is visible."""
        told = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(told["data"]))

    async def close(self) -> None:
        """Let go of the tab."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        await self._socket.close()

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            reply = self._replies.pop(told.get("id", 0), None)
            if reply is not None:
                if "error" in told:
                    reply.set_exception(AssertionError(told["error"]))
                else:
                    reply.set_result(told.get("result", {}))
            elif told.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["params"])[:800])
            elif told.get("method") == "Log.entryAdded":
                entry = told["params"]["entry"]
                if entry["level"] in ("error", "warning"):
                    self.complaints.append(f"{entry['text']} {entry.get('url', '')}")


class Browser:
    """A running browser with a profile of its own. Made by `Browser.start`."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base
        self._pages: list[Page] = []

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Browser]:
        """Start it for the length of a block."""
        program = find_chromium()
        with tempfile.TemporaryDirectory(prefix="ota-browser-", ignore_cleanup_errors=True) as home:
            process = await asyncio.create_subprocess_exec(
                program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-dev-shm-usage", "--disable-extensions", "--remote-debugging-port=0",
                f"--user-data-dir={home}", "about:blank",
                env={**os.environ, "HOME": home, "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
            reading: asyncio.Task[None] | None = None
            try:
                base = await asyncio.wait_for(_address(process), 30)
                reading = asyncio.create_task(_drain(process))
                async with aiohttp.ClientSession() as session:
                    browser = cls(session, base)
                    try:
                        yield browser
                    finally:
                        for page in browser._pages:
                            await page.close()
            finally:
                # Its helpers outlive it otherwise, and keep its pipe open.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
                if reading is not None:
                    await reading

    async def open(self, url: str) -> Page:
        """A tab with this address."""
        async with self._session.put(f"{self._base}/json/new?about:blank") as response:
            told = await response.json()
        socket = await self._session.ws_connect(told["webSocketDebuggerUrl"], max_msg_size=0)
        page = Page(socket)
        self._pages.append(page)
        for domain in ("Page", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        await page.appear(width=1100, height=900)
        await page.call("Page.navigate", url=url)
        await page.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async for line in process.stderr:
        found = re.search(rb"DevTools listening on ws://([^/]+)/", line)
        if found:
            return f"http://{found.group(1).decode()}"
    raise AssertionError(f"Chromium ended with {await process.wait()}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    with contextlib.suppress(ValueError):  # a line that is too long
        while await process.stderr.read(65536):
            pass
