# SPDX-License-Identifier: GPL-3.0-or-later
"""The page in a real browser: against the real module and the real bench with simulated boards, and
against statuses that are told to it for what takes long or is rare."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.api.engine import Engine
from ota_service.client.failure import Failure
from ota_service.dashboard.attached import AttachedBoards
from ota_service.dashboard.guard import Guard
from ota_service.dashboard.server import serving
from tests.flash.merged_files import merged
from tests.support import page_scenes as scenes
from tests.support.browser import Browser, Page, browsing, expect, open_page, violations
from tests.support.command import environment, start_command
from tests.support.firmware_server import FirmwareServer
from tests.support.machine import SERVICE, Machine
from tests.support.rig import BOOT, PROJECT

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

UNREACHABLE = Failure(
    "localhost:8080 cannot be reached (refused).", "See that viam-server runs.",
    code="unreachable",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """One for all: a window each has its own cookies."""
    async with browsing() as started:
        yield started


@asynccontextmanager
async def dashboard(*arguments: str, **env: str) -> AsyncIterator[str]:
    """The command, as a person starts it; the address that it prints."""
    process = await start_command(
        "dashboard", "--port", "0", *arguments, env=environment(None, **env)
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        yield line.decode().strip()
    finally:
        process.terminate()
        out, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0, (out, err)
        assert b"Traceback" not in err, err


@asynccontextmanager
async def told(browser: Browser, now: scenes.Status) -> AsyncIterator[Told]:
    """The page of a service that tells what it is given, through the real server."""
    async with scenes.served(now) as (service, url):
        page, complaints = await open_page(browser, url)
        yield Told(page, service)
        await no_complaints(page, complaints)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(browser: Browser) -> AsyncIterator[Told]:
    """One for all: each test begins anew."""
    async with told(browser, scenes.status({})) as on:
        yield on


class Told:
    """A page, and the service behind it, which may be given something else to tell."""

    def __init__(self, page: Page, service: scenes.ToldService) -> None:
        self.page, self.service = page, service

    async def begin(self, now: scenes.Status) -> tuple[Page, scenes.ToldService]:
        """As if the page had just been opened, in a wide window."""
        self.service.begin(now)
        await self.page.set_viewport_size({"width": 1100, "height": 900})
        await self.page.reload()
        await expect(self.page.locator("#link")).to_have_attribute("data-link", "on")
        return self.page, self.service

    async def tell(self, now: scenes.Status, url_has: str) -> None:
        """Until the page has it."""
        self.service.now = now
        await expect(self.page.locator("#target-url")).to_contain_text(url_has)


async def no_complaints(page: Page, complaints: Sequence[str]) -> None:
    """Nothing was refused by the policy, and no script failed."""
    assert complaints == []
    # What the browser had to fetch came from the page's own server.
    names = await page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
    origin = await page.evaluate("location.origin")
    assert names
    assert all(name.startswith(origin) for name in names)
    await page.context.close()


def of(page: Page, name: str) -> Any:
    """A board's row with its details."""
    return page.locator(f"[data-board={json.dumps(name)}]")


async def has_state(page: Page, name: str, state: str) -> None:
    """Wait until a board's row shows it; an update of a simulated board is awaited."""
    await expect(of(page, name)).to_have_attribute("data-state", state, timeout=40_000)


async def choose(page: Page, *names: str) -> None:
    """Select these boards and no others."""
    await page.click("[data-choose='']")
    for name in names:
        await page.get_by_label(f"Select {name}", exact=True).check()


async def press(page: Page, verb: str, answer: str = "yes") -> str:
    """An action for what is selected; what the question was."""
    await page.click(f"[data-verb={verb}]")
    asked = str(await page.inner_text("#ask"))
    await page.click(f"#ask-{answer}")
    await expect(page.locator("#ask")).to_be_hidden()
    return asked


async def test_a_persons_day_with_the_page(tmp_path: Path, browser: Browser) -> None:
    """Look, dry run, update, a failure with its remedy and boot log, the history and a run of it as
    a file, release; every restart is asked for first, and `Leave it` leaves it."""
    bad = build_app(PROJECT, "1.2.0", size_bytes=80_000, behaviour=Behaviour(
        ending="panic", ending_after_s=0.2))  # fmt: skip
    kitchen = "<b>kitchen</b>"
    with SimProcess(tmp_path / "boards", [SimBoard("guide"), SimBoard("micro-rdk")]) as sim:
        async with (
            FirmwareServer.start() as server,
            Machine.start(tmp_path / "m", tcp=True) as machine,
            dashboard("--address", machine.address) as url,
        ):
            good = server.put("/app.bin", build_app(
                PROJECT, "1.1.0", size_bytes=80_000, behaviour=Behaviour(log_level_off=True)
            ))  # fmt: skip
            boards: list[dict[str, Any]] = [
                {"name": kitchen, "port": sim.boards[0].url},
                {"name": "roof", "port": sim.boards[1].url, "version": "1.2.0",
                 "url": server.put("/bad.bin", bad)},
            ]  # fmt: skip
            await machine.add(SERVICE, "OTA", {
                **BOOT, "url": good.replace("//", "//me:s3cret@"), "version": "1.1.0",
                "boards": boards, "auto_update": False,
            })  # fmt: skip
            page, complaints = await open_page(browser, url)
            await has_state(page, kitchen, "unknown")
            await expect(page.locator("#link")).to_have_attribute("data-link", "on")
            text = await page.inner_text("body")
            assert kitchen in text  # a name is text, never markup
            assert "s3cret" not in text
            await page.get_by_role("button", name="roof", exact=True).click()
            facts = of(page, "roof").locator("dl")
            await expect(facts).to_contain_text(boards[1]["url"])  # what it is pinned to
            opens = [board.control.counters().get("opened", 0) for board in sim.boards]

            assert "Nothing is written" in await press(page, "dry_run", "no")
            assert [board.control.counters().get("opened", 0) for board in sim.boards] == opens
            await press(page, "dry_run")
            await expect(of(page, kitchen)).to_contain_text("would be written")

            await press(page, "update")
            await has_state(page, kitchen, "up_to_date")
            await expect(of(page, kitchen)).not_to_contain_text("would be")
            await page.get_by_role("button", name=kitchen, exact=True).click()
            await expect(of(page, kitchen)).to_contain_text("says nothing: not confirmed")
            await has_state(page, "roof", "rolled_back")
            for part in ("Look at the boot log", "boot-failed"):
                await expect(of(page, "roof")).to_contain_text(part)
            await expect(of(page, "roof").locator("pre")).to_contain_text("Guru Meditation")
            await expect(page.locator("#toasts")).to_contain_text("The run succeeded in part")
            newest = page.locator("#history > li").first
            await newest.locator("summary").first.click()
            for part in ("roof", "1.0.0", "1.2.0", "rolled back", "Boot log of roof"):
                await expect(newest).to_contain_text(part)
            async with page.expect_download() as download:
                await newest.get_by_role("link").click()
            saved = json.loads(Path(await (await download.value).path()).read_text())
            assert saved["boards"]["roof"]["boot_log"]

            await choose(page, "roof")
            assert "Nothing is restarted" in await press(page, "release")
            await has_state(page, "roof", "outdated")
            # Where it goes: to its own version, not to the service's.
            await expect(of(page, "roof").locator(".version")).to_have_text("1.0.0 → 1.2.0")
            await no_complaints(page, complaints)


async def test_progress_cancel_and_the_keyboard(plain: Told) -> None:
    """Everything is reached by Tab, pressed by Enter and left by Escape, the focus comes back; the
    first Tab leads past the head; a run shows its bar, its end is said, and Cancel stops it."""
    at_rest = scenes.status({"a": scenes.board(1, "outdated")})
    page, service = await plain.begin(at_rest)
    focus = page.locator(":focus")
    await page.keyboard.press("Tab")
    await expect(focus).to_have_text("Skip to the boards")
    await page.keyboard.press("Enter")
    await expect(focus).to_have_text("Boards")
    seen = []
    for _ in range(14):
        await page.keyboard.press("Tab")
        seen.append(await page.evaluate(
            "document.activeElement.textContent || document.activeElement.ariaLabel || "
            "document.activeElement.id"
        ))  # fmt: skip
    assert seen[0] == "filter-text"
    assert seen[2:] == [
        *("All", "Failed", "Outdated", "None", "Update…", "Stage…", "Activate…", "Dry run…"),
        *("Roll back…", "Release…", "Version…", "Verify…"),
    ]
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    await page.locator("[data-verb=update]").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#ask")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("#ask")).to_be_hidden()
    await expect(focus).to_have_text("Update…")
    await page.locator("[data-verb=activate]").focus()
    await page.keyboard.press("Enter")  # greyed out, and says why
    await expect(page.locator("#toasts")).to_contain_text("Nothing is staged")
    assert service.asked == []

    await page.get_by_label("Select a", exact=True).focus()
    await page.keyboard.press("Space")
    await page.locator("[data-verb=update]").focus()
    await page.keyboard.press("Enter")
    await expect(focus).to_have_text("Leave it")  # not the box that makes it riskier
    await page.keyboard.press("Tab")
    await expect(focus).to_have_text("Update")
    await page.keyboard.press("Enter")
    await expect(page.locator("#toasts")).to_contain_text("It began")
    assert service.asked == [("update", {"boards": ["a"]})]
    service.now = scenes.status({"a": scenes.being_written(1, 40.4)}, "running")
    bar = of(page, "a").locator(".progress")
    await expect(bar).to_have_text(re.compile(r"writing\s*71 kB/s, 40 %, 0:12 left"))
    assert await bar.locator("progress").evaluate("e => e.value") == 40.4
    await expect(page).to_have_title("(1) ESP32 boards")
    await expect(page.locator("[data-verb=update]")).to_have_attribute("aria-disabled", "true")
    await expect(focus).to_have_text("Update…")  # greyed out, and still where it was
    await page.click("#cancel")
    assert "restarted into their old firmware" in await page.inner_text("#ask")
    await page.click("#ask-yes")
    service.now = {**at_rest, "run": {**at_rest["run"], "outcome": "cancelled"}}
    await expect(page.locator("#toasts")).to_contain_text("The run was cancelled: 0 of 1 board")
    await expect(page).to_have_title(re.compile("^Run cancelled . ESP32 boards$"))
    await expect(focus).to_have_id("run")  # Cancel had it, and is gone
    await page.keyboard.press("Tab")
    await expect(page).to_have_title("ESP32 boards")
    assert service.asked[-1] == ("cancel", {})
    service.now = scenes.status({"a": scenes.being_written(1, 40.4)}, "running")
    await expect(page.locator(".toast.ended")).to_have_count(0)  # that was another run's


async def test_32_boards_are_filtered_sorted_and_selected(plain: Told) -> None:
    """Failures first; the head stays in sight; the selection is what is acted upon, and nothing
    that the filter hides."""
    page, service = await plain.begin(scenes.fleet_mid_run())

    async def shown() -> list[str]:
        return list(await page.locator("#boards tbody:visible .name").all_inner_texts())

    first = await shown()
    assert first[:3] == ["arm-14", "arm-23", "arm-13"]
    assert first.index("arm-12") < first.index("arm-1")
    assert len(first) == 32
    await expect(page.locator("#counts")).to_have_text(
        "2 failed, 14 being worked on, 1 not good, 3 outdated, 10 up to date, "
        "1 rolled back as asked, 1 absent; 2 with something staged"
    )
    await page.locator("#history").scroll_into_view_if_needed()
    await expect(page.locator("[data-verb=update]")).to_be_in_viewport()
    await expect(page.locator("[data-column=state]")).to_be_in_viewport()

    await page.get_by_role("button", name="Board", exact=True).click()
    assert (await shown())[:3] == ["arm-1", "arm-2", "arm-3"]
    await page.get_by_role("button", name="Board", exact=True).click()
    assert (await shown())[0] == "arm-32"
    await expect(page.locator("[data-column=board]")).to_have_attribute("aria-sort", "descending")

    await expect(page.locator("[data-verb=rollback]")).to_have_attribute("aria-disabled", "true")
    await page.click("[data-choose=trouble]")
    await expect(page.locator("#whom")).to_have_text("For 2 selected boards:")
    asked = await press(page, "rollback")
    assert "arm-14: to 2.3.1 in ota_1" in asked
    assert "arm-23: to what its other slot holds" in asked
    assert service.asked.pop()[1]["boards"] == ["arm-14", "arm-23"]

    await page.fill("#filter-text", "ARM-2")  # and what is selected and hidden is not meant
    await expect(page.locator("#whom")).to_have_text("For arm-23:")
    await page.click("[data-choose='']")
    await expect(page.locator("#whom")).to_have_text("For the 11 boards shown:")
    await page.select_option("#filter-state", "busy")
    assert sorted(await shown()) == [f"arm-2{n}" for n in (0, 1, 2, 4, 5, 6, 7, 8)]
    await page.fill("#filter-text", "")
    await page.select_option("#filter-state", "doubtful")
    assert await shown() == ["arm-12"]  # up to date by its version, and not good
    doubtful = of(page, "arm-12").locator(".badge")
    await expect(doubtful).to_have_text("! up to date, not good")
    await expect(doubtful).to_have_class("badge warn")
    await page.select_option("#filter-state", "staged")
    assert sorted(await shown()) == ["arm-31", "arm-32"]
    await page.check("#everyone")
    assert "arm-31: 2.5.0" in await press(page, "activate")
    assert service.asked.pop() == ("activate", {"boards": ["arm-31", "arm-32"]})

    await page.select_option("#filter-state", "all")
    service.replies["verify"] = {"boards": {
        "arm-1": {"matches": True}, "arm-2": {"matches": False},
        "arm-3": {"error": {"code": "no-answer", "message": "arm-3 is silent."}},
    }}  # fmt: skip
    await press(page, "verify")
    await expect(page.locator("#toasts")).to_contain_text(
        "Verified: 1 image matches, 1 image differs, 1 no-answer."
    )
    await page.get_by_role("button", name="State", exact=True).click()
    await page.get_by_role("button", name="arm-3", exact=True).click()
    await expect(of(page, "arm-3")).to_contain_text("arm-3 is silent.")
    places = await shown()

    service.now = UNREACHABLE
    await expect(page.locator("#link")).to_have_text(re.compile("out of reach, as of [0-9]"))
    await expect(page.locator("#page")).to_have_class("stale")
    await expect(page.locator("#notices")).to_contain_text("See that viam-server runs.")
    await expect(page.locator("[data-verb=update]")).to_have_attribute("aria-disabled", "true")
    service.now = scenes.fleet_after()
    await expect(page.locator("#toasts")).to_contain_text(
        "25 of 32 boards up to date, 1 with an error, 1 of them not good."
    )
    await expect(page.locator("#page")).not_to_have_class("stale")
    assert await shown() == places  # while a row is open


async def test_a_manifest_goes_back(plain: Told) -> None:
    """Steps, images, boards and phase; which board failed, which go back with it, and which did."""
    page, service = await plain.begin(scenes.going_back())
    await expect(page.locator("#phases [aria-current]")).to_have_text("going back")
    steps = page.locator("#steps > li")
    await expect(steps).to_have_count(2)
    await expect(steps.first).to_have_attribute("aria-current", "step")
    for part in ("motor 2.0", "left", "rolling back", "sensor 2.0", "stern", "✗ rolled back"):
        await expect(steps.first).to_contain_text(part)
    await expect(steps.last).to_contain_text("staged 1.7, 9 h ago")
    await expect(page.locator("#together")).to_contain_text("motor, sensor go forward or back")
    why = page.locator("#went-back")
    await expect(why).to_contain_text("stern: The new firmware")
    await expect(why).to_contain_text("Going back now: bow, left")
    await expect(why).to_contain_text("Half switched: of a group only bow, left have the new")
    service.now = scenes.gone_back()
    await expect(why).to_contain_text("Taken back with it: bow, left, right")
    await expect(of(page, "left").locator(".marks")).to_contain_text("taken back with stern")
    await expect(why).not_to_contain_text("panel")  # nothing has failed there
    await expect(why).not_to_contain_text("Half switched")
    await expect(page.locator("#phases")).to_be_hidden()
    await page.get_by_role("button", name="Let it be tried again…").click()
    await page.click("#ask-yes")
    await expect(page.locator("#toasts")).to_contain_text("takes this firmware up again")
    assert service.asked == [("release", {"stopped": True})]


async def test_every_state_fits_and_hinders_nobody(browser: Browser, plain: Told) -> None:
    """Nothing runs out of the window from 320 to 1280 pixels, and axe finds nothing, with details,
    boot logs and questions open, light and dark."""
    await plain.begin(scenes.status({}))
    async with told(browser, scenes.bench_empty()) as bench:
        for number, (name, scene) in enumerate(scenes.SCENES.items()):
            on, now = bench if "bench" in name else plain, scene()
            in_trouble = sorted(now["boards"].items(), key=lambda entry: "error" not in entry[1])
            now["boards"] = dict(in_trouble[:4])  # 32 take axe a second and a half
            now["target"] = {**now["target"], "url": f"http://{name}"}
            if "run" in now:
                now["run"]["id"] = f"{number:012}"
            await on.tell(now, name)
            await on.page.evaluate(OPEN_ALL)
            if "run" in now:
                newest = on.page.locator(".run").first
                await expect(newest).to_contain_text("Download")
                logs = newest.locator("pre")
                await expect(logs).to_have_count(1 if now["boards"] else 0)
                if now["boards"]:  # at the line that decided
                    await on.page.wait_for_function(
                        "document.querySelector('.run pre').scrollTop > 0"
                    )
            await fits(on.page, name)
            await on.page.emulate_media(color_scheme="dark" if number % 2 else "light")
            if number == 0:
                assert await violations(on.page) == [], (name, "asking")
            await on.page.keyboard.press("Escape")
            assert await violations(on.page) == [], name
    plain.service.now = UNREACHABLE
    await expect(plain.page.locator("#page")).to_have_class("stale")
    await plain.page.set_viewport_size({"width": 390, "height": 800})
    assert await violations(plain.page) == []


OPEN_ALL = """() => {
  const press = (selector) => document.querySelector(selector)?.click();
  document.querySelectorAll(".name[aria-expanded=false]").forEach((opener) => opener.click());
  const open = () => {
    document.querySelectorAll("#history > li:first-child details").forEach((one) => {
      one.open = true;
    });
  };
  new MutationObserver(open).observe(document.querySelector("#history"),
    { childList: true, subtree: true });
  open();
  press("[data-choose=all]");
  press("[data-verb=rollback]");
}"""
"""The details of boards, the newest run with its boot logs, and a question."""


async def fits(page: Page, what: str) -> None:
    """At each width."""
    for width in (320, 390, 768, 1280):
        await page.set_viewport_size({"width": width, "height": 800})
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, (what, width)


@asynccontextmanager
async def attached(folder: Path, boards: dict[str, str]) -> AsyncIterator[str]:
    """The page's address of a bench with these boards."""
    engine = Engine(boards, boot_timeout_s=4.0, boot_stable_s=0.3, state_dir=folder / "state",
                    cache_dir=folder / "cache")  # fmt: skip
    async with engine:
        with contextlib.closing(AttachedBoards(engine)) as here:
            async with serving(here, Guard("127.0.0.1"), "127.0.0.1", 0, label="desk") as url:
                yield url


DROP = """([name, text]) => {
  const given = new DataTransfer();
  given.items.add(new File([text], name));
  document.querySelector("#bench").dispatchEvent(
    new DragEvent("drop", { dataTransfer: given, bubbles: true, cancelable: true }));
}"""


async def test_a_day_at_the_bench(tmp_path: Path, browser: Browser) -> None:
    """A firmware is chosen, described, staged, activated and rolled back; a board without slots is
    flashed when its MAC was typed; a start is watched; what is of no use says why."""
    files = {
        "app.bin": build_app(PROJECT, "1.1.0", size_bytes=40_000),
        "whole.bin": merged(version="3.0"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    old = build_app(PROJECT, "1.0.0", size_bytes=40_000)
    made = [SimBoard("guide", app=old, version="1.0.0"), SimBoard("no-ota", app=old)]
    with SimProcess(tmp_path / "b", made) as sim:
        names = {"arm": sim.boards[0].url, "lamp": sim.boards[1].url}
        async with attached(tmp_path, names) as url:
            page, complaints = await open_page(browser, url)
            await expect(page.locator("#bench-hint")).to_contain_text("Drop the firmware here")
            await has_state(page, "arm", "unknown")
            await page.click("[data-verb=stage]", force=True)
            await expect(page.locator("#toasts")).to_contain_text("Drop a firmware on the bench")

            await page.evaluate(DROP, ["notes.txt", "hello"])
            await expect(page.locator("#dropped")).to_contain_text("not-an-image")
            image = {"url": "lamp.bin", "sha256": "ab" * 32}
            release = {"format": 1, "version": "r7", "boards": {"lamp": "one"}}
            text = json.dumps(release | {"images": {"one": image}})
            await page.evaluate(DROP, ["release.json", text])
            await expect(page.locator("#dropped")).to_contain_text("one: lamp.bin, r7, for lamp")
            await page.set_input_files("#files", [tmp_path / name for name in files])
            dropped = page.locator("#dropped > li")
            await expect(dropped).to_have_count(4)
            described = dropped.filter(has_text="app.bin")
            for part in ("✓ App Image", f"{PROJECT} 1.1.0", "ESP32", "40 kB",
                         hashlib.sha256(files["app.bin"]).hexdigest()):  # fmt: skip
                await expect(described).to_contain_text(part)
            for name, version in (("release.json", "r7"), ("app.bin", "1.1.0")):
                await page.get_by_role("radio", name=name).check()
                await expect(page.locator("#tag")).to_have_value(version)
                await expect(page.locator(".meant strong").first).to_have_text(name)
            await page.get_by_label("Take notes.txt off the bench").click()
            await expect(dropped).to_have_count(3)
            await page.fill("#tag", "v1.1")
            await page.keyboard.press("Enter")

            await choose(page, "arm")
            assert "cannot be rolled back meanwhile" in await press(page, "stage")
            await expect(of(page, "arm")).to_contain_text("staged v1.1", timeout=40_000)
            await expect(page.locator("#cancel")).to_be_hidden()
            assert "arm: v1.1" in await press(page, "activate")
            await has_state(page, "arm", "up_to_date")
            await expect(of(page, "arm").locator(".version")).to_have_text("v1.1")
            await expect(page.locator("#cancel")).to_be_hidden()
            assert "arm: to 1.0.0 in factory" in await press(page, "rollback")
            await has_state(page, "arm", "rolled_back")
            # A person wanted it: nothing is red, and nothing is crossed out.
            badge = of(page, "arm").locator(".badge")
            await expect(badge).to_have_text("rolled back as asked")
            await expect(badge).to_have_class(re.compile(r"^badge\s*$"))
            await page.get_by_role("button", name="arm", exact=True).click()
            await page.get_by_label("Watch it start, arm").click()
            assert "It is restarted" in await page.inner_text("#ask")
            await page.click("#ask-yes")
            log = page.get_by_role("log")
            await expect(log).to_contain_text("1.0.0", timeout=40_000)
            await expect(of(page, "arm")).to_contain_text("its firmware runs")
            assert await violations(page) == []

            await choose(page, "lamp")
            await press(page, "version")
            await page.get_by_role("button", name="lamp", exact=True).click()
            mac = sim.boards[1].mac
            await expect(of(page, "lamp").locator("dl")).to_contain_text(mac)
            await page.get_by_label("Flash, lamp").click()
            assert "Replace everything on lamp?" in await page.inner_text("#ask")
            for typed, idle in (("24:0a:c4:ff:ff:ff", "true"), (mac.upper(), "false")):
                await page.fill("#ask-typed", typed)
                await expect(page.locator("#ask-yes")).to_have_attribute("aria-disabled", idle)
            await page.check("#ask-check")
            assert await violations(page) == []
            await page.keyboard.press("Tab")
            await page.locator("#ask-typed").press("Enter")
            await expect(of(page, "lamp").locator(".badge")).to_have_text("being replaced")
            await expect(of(page, "lamp").locator(".running")).to_contain_text(
                "3.0", timeout=40_000
            )
            await expect(page.locator("#history > li").first).to_contain_text("replaced whole")
            await expect(page.locator("#history")).not_to_contain_text("by command")
            await no_complaints(page, complaints)


async def test_a_bridge_is_opened_only_where_it_is_selected(browser: Browser) -> None:
    """What is behind it may be no board: the question says so. What is said is of the firmware on
    the bench, not of the one before it."""
    async with told(browser, scenes.bench_dropped()) as on:
        await expect(on.page.locator("#whom")).to_have_text("For all boards but candidates:")
        await expect(on.page.locator("#counts")).to_have_text(
            "1 failed, 2 outdated, 1 candidate; 1 with something staged"
        )
        second = of(on.page, "24:0a:c4:12:34:02").locator(".marks")
        for part in ("last time: boot-failed", "staged 2.4.1, of another target"):
            await expect(second).to_contain_text(part)
        await expect(on.page.locator("#bench-notices")).to_contain_text("17 (ESP32-S3)")
        await on.page.click("[data-verb=activate]", force=True)
        await expect(on.page.locator("#toasts")).to_contain_text("not of the firmware on the bench")
        asked = await press(on.page, "update")
        assert "serial bridge" not in asked
        for part in ("01: 2.10.0 → older 2.5.0", "02 runs motor 1.0.0, another program"):
            assert part in asked
        await choose(on.page, "/dev/ttyUSB0")
        assert "1 serial bridge that nobody has opened" in await press(on.page, "stage")
        assert on.service.asked == [
            ("update", {}),
            ("stage", {"boards": ["/dev/ttyUSB0"], "probe": True}),
        ]
        on.service.now = {**scenes.gone_back(), "bench": scenes.bench_of()}
        await expect(of(on.page, "stern")).to_be_visible()
        await expect(on.page.locator("#manifest")).to_be_hidden()
        now = scenes.bench_manifest()
        files = now["bench"]["files"]
        images = next(file["images"] for file in files if file["kind"] == "manifest")
        files.append({**scenes.REFUSED, "sha256": images[2]["sha256"]})  # is there, and no use
        on.service.now = now
        named = on.page.locator("#dropped ul li")
        await expect(named).to_contain_text(["✓ motor", "✓ sensor", "display"])
        await expect(named.nth(2)).not_to_contain_text("✓")


async def test_with_a_token_the_address_lets_in_and_hides_it(browser: Browser) -> None:
    """The token leaves the address bar at once; without it there is a form that asks for it."""
    token = "0123456789abcdef-0123456789"
    service = scenes.ToldService(scenes.status({}))
    guard = Guard("127.0.0.1", token=token)
    async with serving(service, guard, "127.0.0.1", 0, label="m") as url:
        bare = url.partition("#")[0]
        stranger, _ = await open_page(browser, bare)
        await expect(stranger.locator("#login")).to_be_visible()
        await expect(stranger.locator("#page")).to_be_hidden()
        await expect(stranger.locator("#token")).to_be_focused()
        assert await violations(stranger) == []
        await stranger.keyboard.type("a wrong one")
        await stranger.keyboard.press("Enter")
        await expect(stranger.locator("#toasts")).to_contain_text("not the token")
        await stranger.fill("#token", token)
        await stranger.keyboard.press("Enter")
        await expect(stranger.locator("#page")).to_be_visible()

        await stranger.context.clear_cookies()
        await stranger.goto("about:blank")
        await stranger.goto(url)
        await expect(stranger.locator("#page")).to_be_visible()
        await stranger.context.clear_cookies()
        await stranger.reload()
        await expect(stranger.locator("#login")).to_be_visible()
        await stranger.evaluate("url => { location.href = url; }", url)  # only the hash is another
        await expect(stranger.locator("#page")).to_be_visible()
        assert stranger.url == bare
        assert await stranger.evaluate("document.cookie") == ""
        await stranger.context.close()
