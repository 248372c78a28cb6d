# SPDX-License-Identifier: GPL-3.0-or-later
"""A headless Chromium, driven by Playwright, and what axe says of a page.

async with browsing() as browser:
    page, complaints = await open_page(browser, url)
    await page.click("#choose")
    assert await violations(page) == []
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from importlib import resources
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

__all__ = ("Browser", "Page", "browsing", "expect", "open_page", "violations")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
PATIENCE_MS = 20_000.0
expect.set_options(timeout=PATIENCE_MS)


def find_chromium() -> str:
    """The browser's program; the test is skipped where this machine has none."""
    for name in (os.environ.get("CHROMIUM", ""), *NAMES):
        found = shutil.which(name) if name else None
        if found:
            return found
    pytest.skip("no Chromium here: apt-get install chromium, or name one in CHROMIUM")


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """A browser for the length of a block, with a profile of its own."""
    program = find_chromium()
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=program, args=_ARGUMENTS,
            env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"},
        )  # fmt: skip
        try:
            yield browser
        finally:
            await browser.close()


async def open_page(browser: Browser, url: str, **context: Any) -> tuple[Page, list[str]]:
    """A tab with this address, in a window of its own with its own cookies; the list gets what the
    browser complains of: failed scripts, refusals by the policy."""
    given = {"viewport": {"width": 1100, "height": 900}, "reduced_motion": "reduce", **context}
    page = await (await browser.new_context(**given)).new_page()
    page.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None,
    )
    await page.goto(url)
    return page, complaints


@cache
def _axe() -> str:
    return (resources.files("axe_playwright_python") / "axe.min.js").read_text("utf-8")


async def violations(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is now, one line a rule."""
    if not await page.evaluate("() => 'axe' in window"):
        await page.evaluate(_axe())
    found = await page.evaluate("() => axe.run({resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
        for one in found["violations"]
        for node in one["nodes"][:3]
    ]
