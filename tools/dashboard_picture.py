# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes the pictures of the page anew: wide and on a phone, light and dark.

./setup.sh --dev -- -m tools.dashboard_picture FOLDER

The documentation has two of them: `fleet-1280-light.png` as docs/images/dashboard.png, and
`manifest-1280-light.png` as docs/images/manifest.png.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from ota_service.dashboard.guard import Guard
from ota_service.dashboard.server import serving
from tests.support import page_scenes as scenes
from tests.support.browser import Browser, Page, browsing, expect, open_page

WINDOWS = {1280: 800, 390: 844}


async def at_boards(page: Page) -> None:
    """32 boards: those that failed are selected, and the first is open."""
    await page.click("[data-choose=trouble]")
    if await page.evaluate("innerWidth") < 500:
        await page.evaluate("document.querySelector('#bar').scrollIntoView()")


async def at_manifest(page: Page) -> None:
    """The manifest's steps, on a phone below what is to run."""
    if await page.evaluate("innerWidth") < 500:
        await page.evaluate("document.querySelector('#manifest').scrollIntoView()")


async def at_history(page: Page) -> None:
    """A run is open, with a boot log."""
    await page.locator("#history summary").first.click()
    await page.locator(".run summary").first.click()
    await page.evaluate("document.querySelector('.run > .notice').scrollIntoView()")
    await page.evaluate("scrollBy(0, -120)")


async def as_it_is(page: Page) -> None:
    """The top of the page."""


PICTURES: dict[str, tuple[Callable[[], scenes.Status], Callable[[Page], Awaitable[None]]]] = {
    "bench": (scenes.bench_dropped, as_it_is),
    "fleet": (scenes.fleet_mid_run, at_boards),
    "manifest": (scenes.going_back, at_manifest),
    "history": (scenes.gone_back, at_history),
}


async def take(browser: Browser, folder: Path, name: str) -> None:
    """One scene in each window and scheme."""
    scene, prepared = PICTURES[name]
    service = scenes.service_of(scene())
    label = "this computer" if name == "bench" else "rover.local:8080"
    async with serving(service, Guard("127.0.0.1"), "127.0.0.1", 0, label=label) as url:
        for width, height in WINDOWS.items():
            for scheme in ("light", "dark"):
                page, _ = await open_page(
                    browser, url, color_scheme=scheme, viewport={"width": width, "height": height}
                )
                await expect(page.locator("#link")).to_have_attribute("data-link", "on")
                await expect(page.locator("#boards tbody")).not_to_have_count(0)
                await prepared(page)
                await page.screenshot(path=folder / f"{name}-{width}-{scheme}.png")
                await page.context.close()


async def pictures(folder: Path) -> None:
    """All of them."""
    async with browsing() as browser:
        for name in PICTURES:
            await take(browser, folder, name)


def main() -> int:
    """The command; returns the exit code."""
    if len(sys.argv) != 2:
        print("usage: -m tools.dashboard_picture FOLDER", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(pictures(folder))
    for path in sorted(folder.glob("*.png")):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
