# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what: where the module writes, what names its files, and what holds it up."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from esp32_sim.images import Behaviour
from esp32_sim.process import SimBoard
from ota_service.firmware.urls import redact
from tests.faults.process import machine, over
from tests.support.module_client import IDLE_ATTRIBUTES, ROOT, ModuleProcess
from tests.support.rig import BOOT, NAME, Rig

pytestmark = pytest.mark.slow

# What opens, makes, moves or removes files; the rest of strace's output is not wanted.
CALLS = "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat"
CALLS += ",rmdir,link,linkat,symlink,symlinkat,truncate,chmod,fchmodat,mknod,mknodat,utimensat"
_PATHS = re.compile(r'"((?:[^"\\]|\\.)*)"')
_PASSED = re.compile(r"= -1 E")
_WRITES = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND)")


def written(trace: Path) -> set[str]:
    """The paths that a traced process (and its children) opened for writing or changed."""
    paths: set[str] = set()
    for line in trace.read_text(errors="replace").splitlines():
        call = line.partition("(")[0].split()[-1] if "(" in line else ""
        if not call or _PASSED.search(line):
            continue
        if call.startswith("open") and not _WRITES.search(line):
            continue
        paths.update(path for path in _PATHS.findall(line) if path.startswith("/"))
    return paths


@pytest.mark.slow
async def test_only_the_own_folders_are_written(tmp_path: Path) -> None:
    """A whole update, seen by the kernel: state_dir, VIAM_MODULE_DATA, the temporary folder."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace tells which files a process writes, and is not installed")
    trace = tmp_path / "trace"
    state = tmp_path / "machine" / "own state"
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "machine").mkdir()
    async with (
        machine(tmp_path, [SimBoard("guide")]) as rig,
        ModuleProcess.start(
            tmp_path / "machine",
            executable=[
                *(strace, "-D", "-f", "-qq", "-e", f"trace={CALLS}", "-o", trace),
                *(sys.executable, ROOT / "src" / "main.py"),
            ],
            env={"TMPDIR": str(temporary)},
            start_timeout_s=60,
        ) as module,
    ):
        rig.module = module
        url = rig.serve("1.1.0")
        await module.add(
            NAME, rig.attributes(url=url, version="1.1.0", state_dir=str(state), **BOOT)
        )
        status = await module.wait_status(NAME, over, timeout_s=90)
        assert status["boards"]["a"]["state"] == "up_to_date", status
        socket = str(module._channel._path) if module._channel is not None else ""
    allowed = (str(state), str(tmp_path / "machine" / "data"), str(temporary), "/dev/", "/proc/")
    paths = written(trace)
    assert any(path.startswith(str(state)) for path in paths), "the trace shows nothing"
    strange = {
        path
        for path in paths
        if not path.startswith(allowed)
        and path != socket
        # The interpreter's own cache of compiled sources, beside them.
        and "__pycache__" not in path
    }
    assert strange == set()


async def test_no_file_is_named_by_the_network(tmp_path: Path) -> None:
    """Paths, redirects and Content-Disposition name nothing: digests do."""
    async with machine(tmp_path, [SimBoard("guide")]) as rig, started(rig) as module:
        image = rig.image("1.1.0")
        evil = "/..%2f..%2f..%2fevil.bin"
        rig.server.put(
            "/../../../evil.bin",
            image,
            headers={"Content-Disposition": 'attachment; filename="../../../evil.bin"'},
        )

        async def moved(_: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": evil + "?name=../../evil"})

        url = rig.server.put("/start.bin", b"")
        rig.server.answer_next("/start.bin", moved)
        await module.add(NAME, rig.attributes(url=url, version="../../evil", **BOOT))
        status = await module.wait_status(NAME, over)
        assert status["boards"]["a"]["state"] == "up_to_date", status
        names = [
            str(path.relative_to(tmp_path / "machine"))
            for path in (tmp_path / "machine").rglob("*")
            if path.is_file()
        ]
        digest = re.compile(r"data/firmware/(images|urls)/[0-9a-f]{16,64}\.(bin|json)")
        ours = re.compile(r"viam/ota-service/journal\.[a-z0-9-]+")
        strange = [name for name in names if not (digest.fullmatch(name) or ours.fullmatch(name))]
        assert strange == [], names
        assert any(digest.fullmatch(name) for name in names)
        assert not list(tmp_path.rglob("evil*"))


@asynccontextmanager
async def started(rig: Rig) -> AsyncIterator[ModuleProcess]:
    """The module of a rig, not configured yet."""
    async with ModuleProcess.start(rig.folder / "machine") as module:
        rig.module = module
        yield module


# --- what holds it up


@asynccontextmanager
async def latencies(module: ModuleProcess) -> AsyncIterator[list[float]]:
    """Ask for the status all the time meanwhile; the seconds that each answer took."""
    took_s: list[float] = []
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            begun_s = time.monotonic()
            await module.status(NAME)
            took_s.append(time.monotonic() - begun_s)
            await asyncio.sleep(0.01)

    asking = asyncio.create_task(ask())
    try:
        yield took_s
    finally:
        stop.set()
        await asking


@pytest.mark.slow
async def test_an_expression_that_would_backtrack_for_ever_does_not(tmp_path: Path) -> None:
    """boot_expect from the configuration against a line made to hang it: the status answers."""
    says = Behaviour(say="a" * 900 + "!", say_after_s=0.2)
    async with machine(tmp_path, [SimBoard("guide")]) as rig, started(rig) as module:
        url = rig.serve("1.1.0", behaviour=says)
        attributes = rig.attributes(
            url=url, version="1.1.0", boot_expect=r"^((a|aa)+)+(a*)*b$", **BOOT
        )
        begun_s = time.monotonic()
        await module.add(NAME, attributes)
        async with latencies(module) as took_s:
            status = await module.wait_status(NAME, over, timeout_s=30)
        assert status["boards"]["a"]["state"] == "rolled_back", status
        assert "boot_expect" in status["boards"]["a"]["error"]["message"]
        assert time.monotonic() - begun_s < 25
        assert max(took_s) < 1.0, max(took_s)


@pytest.mark.slow
async def test_a_command_of_32_mib_leaves_the_status_responsive(tmp_path: Path) -> None:
    """It is refused in a sentence, not in megabytes, and others are answered meanwhile."""
    async with ModuleProcess.start(tmp_path) as module:
        await module.add(NAME, IDLE_ATTRIBUTES)
        word = "x" * ((32 << 20) - 1000)
        commands: list[dict[str, Any]] = [
            {"command": "update", "boards": [word]},
            {"command": word},
            {"command": "update", word: 1},
            {word: {}},
            {"command": "update", "boards": [1.5] * 1_500_000},
        ]
        for command in commands:
            async with latencies(module) as took_s:
                with pytest.raises(Exception, match=r"has \d{8} bytes; the limit is 1048576"):
                    await module.command(NAME, command, timeout=30)
            # One connection carries both, so the answer waits for a part of the megabytes.
            assert max(took_s) < 2.0, max(took_s)
        assert max(len(line) for line in module.log.splitlines()) < 10_000


async def test_a_hundred_commands_at_once(tmp_path: Path) -> None:
    """All are answered, and the status in between."""
    async with ModuleProcess.start(tmp_path) as module:
        await module.add(NAME, IDLE_ATTRIBUTES)
        verbs = ("status", "help", "history", "update")
        async with latencies(module) as took_s:
            replies = await asyncio.gather(
                *(module.command(NAME, {"command": verbs[at % 4]}) for at in range(100))
            )
        assert all(reply["ok"] for reply in replies)
        assert max(took_s) < 2.0, max(took_s)


def test_text_is_searched_for_urls_in_linear_time() -> None:
    """A word of megabytes in a message costs no more than its length, and hides its secrets."""
    begun_s = time.monotonic()
    word = "x" * (4 << 20)
    assert redact(word) == word
    assert redact(word + "://u:secret@host/p?t=secret").endswith("://***@host/p?t=***")
    assert "secret" not in redact("a1+b-c.d://u:secret@h 9http://u:secret@h ://http://u:secret@h")
    assert time.monotonic() - begun_s < 1.0
