# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of the process: no call that blocks holds it up."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.support.module_client import ROOT, ModuleProcess

pytestmark = pytest.mark.slow

END_LIMIT_S = 10.0
MAC = "24:0a:c4:00:00:01"
# What runs in every Python that is started with this on its path: the call blocks for ever, in
# the one thread where it is made.
STUCK = """
import {module}, sys, threading
real = {module}.{name}
def stuck(*arguments, **others):
    if {when!r} not in str(arguments[0]):
        return real(*arguments, **others)
    sys.stderr.write("it blocks\\n")
    threading.Event().wait()
{module}.{name} = stuck
"""
WAYS = {
    "a name server that does not answer": ("socket", "getaddrinfo"),
    "a file on a disk that is gone": ("os", "stat"),
    "the journal's disk": ("sqlite3", "connect"),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_signal_ends_it_whatever_blocks(tmp_path: Path, way: str) -> None:
    """The thread that is in the call is not waited for."""
    module_name, name = WAYS[way]
    site = tmp_path / "site"
    site.mkdir()
    when = "journal" if name == "connect" else "gone.test"
    text = STUCK.format(module=module_name, name=name, when=when)
    (site / "sitecustomize.py").write_text(text)
    env = {"PYTHONPATH": os.pathsep.join((str(site), str(ROOT / "src")))}
    async with ModuleProcess.start(tmp_path, env=env) as module:
        board = {"name": "a", "port": "rfc2217://127.0.0.1:1"}
        target = {"url": "http://gone.test/app.bin", "version": "1", "boards": [board]}
        adding = asyncio.ensure_future(module.add("OTA", target))
        if name != "connect":
            await adding
        if name == "stat":
            flash = {"command": "flash", "board": "a", "confirm": MAC, "path": "/gone.test/m.bin"}
            await module.command("OTA", {**flash, "wait_s": 0.01})
        await module.wait_log("it blocks")
        begun_s = time.monotonic()
        assert await module.terminate() == 0
        assert time.monotonic() - begun_s < END_LIMIT_S
        assert "Traceback" not in module.log
        await asyncio.gather(adding, return_exceptions=True)
