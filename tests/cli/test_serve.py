# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota serve`: the real process, asked by our downloader and by plain requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from esp32_sim.factory import make_flash
from esp32_sim.images import build_app
from ota_service.cli.serve import Build
from ota_service.client.addresses import own_addresses
from ota_service.errors import OtaError
from ota_service.firmware.download import Patience
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from tests.support.command import here

ROOT = Path(__file__).parents[2]
APP = build_app("demo", "1.2.3", size_bytes=200_000)


@dataclass
class Serving:
    """A running server: what it printed, and where it is."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def until(self, words: str) -> str:
        """The first line that holds `words`, which may not have been printed yet."""
        for line in self.lines:
            if words in line:
                return line
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line)
                if words in line:
                    return line
        raise AssertionError("".join(self.lines))

    async def configuration(self) -> dict[str, Any]:
        """What it prints to be configured."""
        await self.until("Stop with")
        text = re.search(r"\{.*?\n\}", "".join(self.lines), re.S)
        assert text is not None
        configuration: dict[str, Any] = json.loads(text[0])
        return configuration


@asynccontextmanager
async def serving(file: Path, *arguments: str, **env: str) -> AsyncIterator[Serving]:
    """`esp32-ota serve FILE` on a free port of the loopback."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ota_service.cli.main", "serve", str(file)),
        *("--host", "127.0.0.1", "--port", "0", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", **env},
    )
    try:
        yield Serving(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.fixture
def app_file(tmp_path: Path) -> Path:
    """An App Image with a space in its name."""
    path = tmp_path / "my app.bin"
    path.write_bytes(APP)
    return path


@pytest.mark.slow
async def test_what_it_prints_can_be_configured(app_file: Path, tmp_path: Path) -> None:
    """Url and version; the file is fetched, not fetched again, and it is said who did."""
    async with serving(app_file) as server:
        configuration = await server.configuration()
        assert configuration["version"] == "1.2.3"
        assert configuration["url"].endswith("/my%20app.bin")
        supply = Supply(tmp_path / "cache")
        target = Target(configuration["url"], configuration["version"])
        assert (await supply.get(target)).data == APP
        line = await server.until("got 200,000 bytes")
        assert "127.0.0.1 (esp32-ota)" in line
        await supply.get(target)
        await server.until("has it already (304)")
        server.process.send_signal(signal.SIGINT)
        await server.until("Stopped.")
        assert await server.process.wait() == 0


@pytest.mark.slow
async def test_ranges_and_validators(app_file: Path) -> None:
    """As downloads that go on need them; nothing else is to be had there."""
    async with serving(app_file) as server, aiohttp.ClientSession() as session:
        url = (await server.configuration())["url"]

        async def ask(path: str = "", *, method: str = "GET", **headers: str) -> Any:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            async with session.request(method, url + path, headers=named) as answer:
                return answer.status, answer.headers, await answer.read()

        status, headers, body = await ask()
        etag = headers["ETag"]
        assert (status, body, headers["Content-Length"]) == (200, APP, str(len(APP)))
        assert headers["Accept-Ranges"] == "bytes"
        for wanted, part, shown in (
            ("bytes=100-", APP[100:], f"bytes 100-{len(APP) - 1}/{len(APP)}"),
            ("bytes=0-9", APP[:10], f"bytes 0-9/{len(APP)}"),
            ("bytes=-5", APP[-5:], f"bytes {len(APP) - 5}-{len(APP) - 1}/{len(APP)}"),
            ("bytes=199990-999999", APP[199990:], f"bytes 199990-{len(APP) - 1}/{len(APP)}"),
        ):
            status, headers, body = await ask(Range=wanted)
            assert (status, body, headers["Content-Range"]) == (206, part, shown)
        assert (await ask(Range="bytes=100-", If_Range=etag))[0] == 206
        assert (await ask(Range="bytes=100-", If_Range='"other"'))[0::2] == (200, APP)
        assert (await ask(Range="bytes=9-2"))[0] == 200
        status, headers, _ = await ask(Range="bytes=200000-")
        assert (status, headers["Content-Range"]) == (416, "bytes */200000")
        assert (await ask(If_None_Match=f'"x", W/{etag}'))[0] == 304
        assert (await ask(method="HEAD"))[0::2] == (200, b"")
        status, _, body = await ask("x")
        assert (status, body) == (404, b"the firmware is at /my%20app.bin\n")
        assert (await ask(method="POST"))[0] == 405


@pytest.mark.slow
async def test_a_user_and_password_are_asked_for_and_not_shown(
    app_file: Path, tmp_path: Path
) -> None:
    """By option or variable; a download with them works, one without says what to check."""
    async with serving(app_file, ESP32_OTA_AUTH="me:hunter2:x") as server:
        shown = (await server.configuration())["url"]
        assert "://USER:PASSWORD@127.0.0.1" in shown
        supply = Supply(tmp_path / "cache", patience=Patience(delays_s=()))
        url = shown.replace("USER:PASSWORD", "me:hunter2%3Ax")
        assert (await supply.get(Target(url, "1"))).data == APP
        for wrong in (
            shown.replace("USER:PASSWORD@", ""),
            shown.replace("USER:PASSWORD", "me:hunter3"),
        ):
            with pytest.raises(OtaError, match="401") as caught:
                await supply.get(Target(wrong, "2"))
            assert "user and password" in caught.value.remedy
        await server.until("gave no or a wrong user and password")
        server.process.send_signal(signal.SIGTERM)
        await server.until("Stopped.")
        assert "hunter" not in "".join(server.lines)


@pytest.mark.slow
async def test_a_new_build_is_taken_up_and_a_broken_one_is_not(
    app_file: Path, tmp_path: Path
) -> None:
    """A developer builds again and again; a file that is being written is no firmware."""
    async with serving(app_file) as server:
        url = (await server.configuration())["url"]
        supply = Supply(tmp_path / "cache")
        await supply.get(Target(url, "1"))
        newer = build_app("demo", "1.2.4", size_bytes=150_000)
        app_file.write_bytes(newer)
        os.utime(app_file, (1, 1))
        assert (await supply.get(Target(url, "2"))).data == newer
        assert '"version": "1.2.4"' in await server.until("has changed: now")
        app_file.write_bytes(newer[:-1])
        os.utime(app_file, (2, 2))
        assert (await supply.get(Target(url, "3"))).data == newer
        assert "The old one stays" in await server.until("cannot be served")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bytes(make_flash("guide")), "esp32-ota flash PORT FILE"),
        (APP[:-1], "damaged"),
        (b"\x7fELF", "esp32-ota image ota FILE"),
    ],
)
def test_only_app_images_are_served(tmp_path: Path, content: bytes, words: str) -> None:
    """A Merged Binary above all: a board that wrote it to a slot would not start."""
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    done = here("serve", str(path), "--host", "127.0.0.1", "--port", "0")
    assert words in done.err
    assert done.code == 1


def test_a_port_in_use_is_named(app_file: Path) -> None:
    """With what to do about it."""
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = str(first.getsockname()[1])
        done = here("serve", str(app_file), "--host", "127.0.0.1", "--port", port)
    assert done.code == 1
    assert f"Port {port} of 127.0.0.1 cannot be listened at" in done.err
    assert "--port" in done.err
    assert done.err.rstrip().endswith("[address-in-use]")


@pytest.mark.slow
async def test_a_download_that_is_broken_off_is_told(app_file: Path) -> None:
    """Who looks on sees a bad link."""
    app_file.write_bytes(build_app("demo", "9", size_bytes=15_000_000))
    async with serving(app_file) as server:
        url = (await server.configuration())["url"]
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            await answer.content.readexactly(1000)
        assert "of 15,000,000 bytes" in await server.until("broke off after")


def test_a_build_that_cannot_be_read_is_told_once(app_file: Path) -> None:
    """And not with each request, while the build before is served."""
    said: list[str] = []
    build = Build(app_file, said.append)
    app_file.unlink()
    app_file.mkdir()
    for _ in range(3):
        found = build("/" + app_file.name)
        assert found is not None
        assert found.data == APP
    assert len(said) == 1
    assert "a folder" in said[0]


def test_own_addresses_are_usable() -> None:
    """At least one, each once, none of them this machine's inside."""
    found = own_addresses()
    assert found
    assert len(set(found)) == len(found)
    assert not any(address.startswith(("169.254.", "0.")) for address in found)
