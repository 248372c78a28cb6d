# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes the pictures of the page anew: wide and on a phone, light and dark.

./setup.sh --dev -- -m tools.dashboard_picture FOLDER

The documentation has three of them, the wide and light ones: `fleet` as docs/images/dashboard.png,
`bench` and `manifest` under their names.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

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
    label = {"label": "this computer"} if name == "bench" else {}
    async with scenes.served(scene(), **label) as (_, url):
        for width, height in WINDOWS.items():
            for scheme in ("light", "dark"):
                page, _ = await open_page(
                    browser, url, color_scheme=scheme, viewport={"width": width, "height": height}
                )
                await expect(page.locator("#link")).to_have_attribute("data-link", "on")
                await expect(page.locator("#boards tbody")).not_to_have_count(0)
                await prepared(page)
                png = with_palette(await page.screenshot())
                (folder / f"{name}-{width}-{scheme}.png").write_bytes(png)
                await page.context.close()


async def pictures(folder: Path) -> None:
    """All of them."""
    async with browsing() as browser:
        for name in PICTURES:
            await take(browser, folder, name)


def with_palette(png: bytes) -> bytes:
    """The same picture in its 256 most frequent colours: a third of the bytes."""
    width, height = struct.unpack_from(">II", png, 16)
    pixels = [pixel for row in _rows(png, width) for pixel in row]
    counts = Counter(pixels)
    palette = [colour for colour, _ in counts.most_common(256)]

    def nearest(colour: bytes) -> int:
        def far(at: int) -> int:
            return sum((a - b) ** 2 for a, b in zip(palette[at], colour, strict=True))

        return min(range(len(palette)), key=far)

    known = {colour: at for at, colour in enumerate(palette)}
    known |= {colour: nearest(colour) for colour in counts if colour not in known}
    rows = (pixels[at : at + width] for at in range(0, len(pixels), width))
    body = b"".join(b"\0" + bytes(known[pixel] for pixel in row) for row in rows)
    return png[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            (b"PLTE", b"".join(palette)), (b"IDAT", zlib.compress(body, 9)), (b"IEND", b""),
        )
    )  # fmt: skip


def _rows(png: bytes, width: int) -> Iterator[list[bytes]]:
    """Rows of RGB pixels, with the filters of a PNG of 8 bits without alpha undone."""
    assert png[24:26] == b"\x08\x02"
    packed, at = b"", 8
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        packed += png[at + 8 : at + 8 + size] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + size
    raw, stride = zlib.decompress(packed), 3 * width
    above = bytes(stride)
    for start in range(0, len(raw), stride + 1):
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride if kind else 0):
            left, up, corner = (row[i - 3], above[i], above[i - 3]) if i > 2 else (0, above[i], 0)
            if kind == 4:
                guess = left + up - corner
                before = min((left, up, corner), key=lambda one: abs(guess - one))
            else:
                before = (0, left, up, (left + up) // 2)[kind]
            row[i] = (row[i] + before) & 255
        yield [bytes(row[i : i + 3]) for i in range(0, stride, 3)]
        above = bytes(row)


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
