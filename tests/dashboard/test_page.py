# SPDX-License-Identifier: GPL-3.0-or-later
"""The page in a real browser, against the real module with simulated boards."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard, SimProcess
from tests.support.browser import Browser, Page
from tests.support.command import environment, start_command
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import SERVICE, Machine, eventually
from tests.support.rig import BOOT, PROJECT

pytestmark = pytest.mark.slow

DIALOG = "document.querySelector('#ask').open"
FOCUS = "document.activeElement.textContent"


def card(name: str) -> str:
    """A board's card, as a selector."""
    return f'[data-board="{name}"]'


def state(name: str) -> str:
    """The state that a board's card shows, as an expression."""
    return f"document.querySelector('{card(name)}')?.dataset.state"


@asynccontextmanager
async def dashboard(address: str, *options: str, **env: str) -> AsyncIterator[str]:
    """The command, as a person starts it; the address that it prints."""
    process = await start_command(
        *("dashboard", "--address", address, "--port", "0", *options), env=environment(None, **env)
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        yield line.decode().strip()
    finally:
        process.terminate()
        out, err = await asyncio.wait_for(process.communicate(), 10)
        assert process.returncode == 0, (out, err)
        assert b"Traceback" not in err, err


async def no_complaints(page: Page) -> None:
    """Nothing was refused by the policy, and no script failed."""
    assert page.complaints == []
    # What the browser had to fetch came from the page's own server.
    names = await page.run("performance.getEntriesByType('resource').map(e => e.name)")
    origin = await page.run("location.origin")
    assert names
    assert all(name.startswith(origin) for name in names)


async def test_a_persons_day_with_the_page(tmp_path: Path) -> None:
    """Look, dry run, update, a failure with its remedy, rollback, release, history; every restart
    is asked for first, and `Leave it` leaves it."""
    bad = build_app(PROJECT, "1.2.0", size_bytes=80_000, behaviour=Behaviour(
        ending="panic", ending_after_s=0.2))  # fmt: skip
    with SimProcess(tmp_path / "boards", [SimBoard("guide"), SimBoard("micro-rdk")]) as sim:
        async with (
            FirmwareServer.start() as server,
            Machine.start(tmp_path / "m", tcp=True) as machine,
            dashboard(machine.address) as url,
            Browser.start() as browser,
        ):
            good = server.put("/app.bin", build_app(
                PROJECT, "1.1.0", size_bytes=80_000, behaviour=Behaviour(log_level_off=True)
            ))  # fmt: skip
            boards: list[dict[str, Any]] = [
                {"name": "<b>kitchen</b>", "port": sim.boards[0].url},
                {"name": "roof", "port": sim.boards[1].url, "version": "1.2.0",
                 "url": server.put("/bad.bin", bad)},
            ]  # fmt: skip
            await machine.add(SERVICE, "OTA", {
                **BOOT, "url": good.replace("//", "//me:s3cret@"), "version": "1.1.0",
                "boards": boards, "auto_update": False,
            })  # fmt: skip
            page = await browser.open(url)
            kitchen = "<b>kitchen</b>"
            await page.until(f"{state(kitchen)} === 'unknown'")
            await page.until("document.querySelector('#link').dataset.link === 'on'")
            text = await page.run("document.body.innerText")
            assert kitchen in text  # a name is text, never markup
            assert "s3cret" not in text
            facts = await page.run(f"document.querySelector('{card('roof')} dl').innerText")
            assert f"1.2.0, {boards[1]['url']}" in facts  # what it is pinned to
            facts = await page.run(f"document.querySelector('{card(kitchen)} dl').innerText")
            assert "Pinned to" not in facts
            opens = [board.control.counters().get("opened", 0) for board in sim.boards]

            await page.click("#dry-run-all")
            assert await page.run(DIALOG)
            assert "Nothing is written" in await page.run(
                "document.querySelector('#ask').innerText"
            )
            await page.click("#ask-no")
            await page.until(f"!{DIALOG}")
            assert [board.control.counters().get("opened", 0) for board in sim.boards] == opens

            await page.click("#dry-run-all")
            await page.click("#ask-yes")
            await page.until(
                f"document.querySelector('{card(kitchen)}').innerText.includes('Dry run: it would')"
            )

            await page.click("#update-all")
            await page.click("#ask-yes")
            await page.until(f"{state(kitchen)} === 'up_to_date'", limit_s=40)
            await page.until(f"{state('roof')} === 'rolled_back'", limit_s=40)
            shown = f"document.querySelector('{card(kitchen)}').innerText"
            await page.until(f"{shown}.includes('starts, but says nothing: not confirmed')")
            roof = await page.run(f"document.querySelector('{card('roof')}').innerText")
            assert "Look at the boot log in the history" in roof
            assert "boot-failed" in roof
            await page.until("document.querySelector('#run').innerText.includes('in part')")
            newest = "document.querySelector('#history > li')"
            await page.until(f"{newest}?.innerText.includes('in part')")
            await page.click("#history summary")
            run = await page.run(f"{newest}.innerText")
            for part in (
                kitchen,
                "1.0.0",
                "1.1.0",
                "up to date",
                "rolled back",
                "Boot log of roof",
                "starts, but says nothing: not confirmed",
            ):
                assert part in run, run

            release = f"{card('roof')} button[aria-label='Release roof']"
            await page.click(release)
            await page.until(f"{state('roof')} === 'outdated'")
            # Where it goes: to its own version, not to the service's.
            shown = f"document.querySelector('{card('roof')} dl').innerText"
            await page.until(f"{shown}.includes('1.0.0 → 1.2.0')")
            await page.click(f"{card(kitchen)} button[aria-label^='Roll back']")
            await page.click("#ask-yes")
            await page.until(f"{state(kitchen)} === 'rolled_back'", limit_s=30)

            async def version() -> str:
                return str(sim.boards[0].control.running()["version"])

            await eventually(version, lambda found: found == "1.0.0")
            await no_complaints(page)


async def test_progress_cancel_and_the_keyboard(tmp_path: Path) -> None:
    """Everything is reached by Tab, pressed by Enter and left by Escape, the focus comes back;
    a run shows its bar, and Cancel stops it."""
    with SimProcess(tmp_path / "b", [SimBoard("guide", config={"timed": True})]) as sim:
        async with (
            FirmwareServer.start() as server,
            Machine.start(tmp_path / "m", tcp=True) as machine,
            dashboard(machine.address) as url,
            Browser.start() as browser,
        ):
            image = build_app(PROJECT, "1.1.0", size_bytes=900_000)
            attributes = {"url": server.put("/app.bin", image), "version": "1.1.0",
                          "boards": [{"name": "a", "port": sim.boards[0].url}],
                          "auto_update": False}  # fmt: skip
            await machine.add(SERVICE, "OTA", attributes)
            page = await browser.open(url)
            await page.until(state("a"))
            seen = []
            for _ in range(5):
                await page.press("Tab")
                seen.append(await page.run(FOCUS))
            assert seen == ["Update all…", "Dry run…", "Update…", "Dry run…", "Roll back…"]
            outline = await page.run("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"
            for _ in range(4):
                await page.press("Tab", shift=True)
            await page.press("Enter")
            assert await page.run(DIALOG)
            await page.press("Escape")
            await page.until(f"!{DIALOG}")
            assert await page.run(FOCUS) == "Update all…"
            assert sim.boards[0].control.counters().get("opened", 0) == 0

            await page.press("Enter")
            for _ in range(4):
                if await page.run(FOCUS) == "Update":
                    break
                await page.press("Tab")
            assert await page.run(FOCUS) == "Update"
            await page.press("Enter")
            bar = f"document.querySelector('{card('a')} progress')"
            await page.until(f"{bar}.value > 0", limit_s=30)
            shown = await page.run(f"document.querySelector('{card('a')} .progress').innerText")
            assert re.search(r"writing\s+\d+ kB/s, \d+ %, \d:\d\d left", shown), shown
            assert "(1)" in await page.run("document.title")
            assert await page.run(FOCUS) == "Update all…"  # greyed out, and still where it was
            await page.press("Enter")
            assert not await page.run(DIALOG)
            await page.click("#cancel-all")
            assert "restarted into their old firmware" in await page.run(
                "document.querySelector('#ask').innerText"
            )
            await page.click("#ask-yes")
            await page.until("document.querySelector('#run').innerText.includes('cancelled')")
            await page.until(f"{state('a')} === 'outdated'")
            await no_complaints(page)


async def test_it_fits_a_phone_and_the_dark_and_survives_the_machine(tmp_path: Path) -> None:
    """No sideways scrolling at 360 pixels; text stands out by 4.5 to 1 in light and dark; when the
    machine is gone it says so and what to do."""
    async with dashboard("127.0.0.1:9") as url, Browser.start() as browser:
        page = await browser.open(url)
        await page.until("document.querySelector('#link').dataset.link === 'off'")
        notice = await page.until("document.querySelector('#notices').innerText")
        assert "127.0.0.1:9 cannot be reached" in notice
        assert "viam-server runs" in notice
    async with Machine.start(tmp_path / "m", tcp=True) as machine, Browser.start() as browser:
        await machine.add(SERVICE, "OTA", {
            "url": "http://127.0.0.1:9/a-rather-long-name-of-a-firmware-file-for-a-phone.bin",
            "version": "2026.11.24-nightly-with-a-long-name", "auto_update": False,
            "boards": [{"name": "a-board-with-quite-a-long-name-on-it", "port": "/dev/ttyUSB77"}],
        })  # fmt: skip
        async with dashboard(machine.address) as url:
            page = await browser.open(url)
            await page.until(f"{state('a-board-with-quite-a-long-name-on-it')} === 'absent'")
            for dark in (False, True):
                await page.appear(width=360, height=740, dark=dark, phone=True)
                assert await page.run("document.documentElement.scrollWidth") <= 360
                ratios = await page.run(CONTRAST)
                assert len(ratios) > 10
                assert min(ratio for ratio, _ in ratios) >= 4.5, sorted(ratios)[:3]
            await no_complaints(page)


async def test_with_a_token_the_address_lets_in_and_hides_it(tmp_path: Path) -> None:
    """The token leaves the address bar at once; without it there is a form that asks for it."""
    token = "0123456789abcdef-0123456789"
    async with (
        Machine.start(tmp_path / "m", tcp=True) as machine,
        dashboard(machine.address, ESP32_OTA_TOKEN=token) as url,
        Browser.start() as browser,
    ):
        assert url.endswith(f"#token={token}")
        bare = url.partition("#")[0]
        stranger = await browser.open(bare)
        await stranger.until("!document.querySelector('#login').hidden")
        assert await stranger.run("document.querySelector('#page').hidden")
        field = "document.querySelector('#token')"
        await stranger.until(f"document.activeElement === {field}")
        await stranger.run(f"{field}.value = 'a wrong one'")
        await stranger.press("Enter")
        await stranger.until(
            "document.querySelector('#toasts').innerText.includes('not the token')"
        )
        await stranger.run(f"{field}.value = '{token}'")
        await stranger.press("Enter")
        await stranger.until("!document.querySelector('#page').hidden")
        await stranger.run("fetch('/api/login')")
        await stranger.call("Network.clearBrowserCookies")

        friend = await browser.open(url)
        await friend.until("!document.querySelector('#page').hidden")
        assert await friend.run("location.href") == bare
        assert await friend.run("document.cookie") == ""


CONTRAST = """
(() => {
  const parse = (color) => {
    const found = color.match(/[\\d.]+/g).map(Number);
    return found.length < 4 ? [...found, 1] : found;
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c[3] === 1) return c;
    }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility() || e.closest("[aria-disabled=true]")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 40)]);
  }
  return found;
})()
"""
"""The contrast of each visible text with what is behind it, as WCAG 2 defines it."""
