# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the command `esp32-ota` in a process of its own, without a terminal or on one, or here.

done = await run_command("ports", "--json")
assert done.code == 0
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ota_service.cli.main import main

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "ota_service.cli.main")
_VIAM_KEYS = ("VIAM_API_KEY", "VIAM_API_KEY_ID", "NO_COLOR", "COLUMNS", "ESP32_OTA_ADDRESS")


@dataclass(frozen=True)
class Done:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str


def environment(folder: Path | None = None, **more: str) -> dict[str, str]:
    """The environment of a command; with `folder` its state and cache are there."""
    env = {name: value for name, value in os.environ.items() if name not in _VIAM_KEYS}
    env |= {"PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color"}
    if folder is not None:
        env |= {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
        env.pop("VIAM_HOME", None)
        env.pop("VIAM_MODULE_DATA", None)
    return {**env, **more}


def ended_by_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Let `dashboard`, which runs in this process until Ctrl-C or SIGTERM, end as by those when the
    returned function is called."""
    stop: list[Callable[[], object]] = []

    @contextlib.contextmanager
    def on_stop(asked: Callable[[], object]) -> Iterator[None]:
        stop.append(asked)
        yield

    monkeypatch.setattr("ota_service.cli.dashboard.on_stop", on_stop)
    return lambda: stop[0]()


def here(*arguments: str) -> Done:
    """Run it in this process: for what is answered without a board, a server or a loop."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


Call = Callable[..., Done]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command in this process, which has folders of its own."""
    for name, folder in (("XDG_STATE_HOME", "state"), ("XDG_CACHE_HOME", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    for name in ("VIAM_HOME", "VIAM_MODULE_DATA", "COLUMNS"):  # a test runner may set COLUMNS
        monkeypatch.delenv(name, raising=False)
    return here


async def start_command(
    *arguments: str, env: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start it; its output goes to pipes."""
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        env=dict(env or environment()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def run_command(
    *arguments: str, env: Mapping[str, str] | None = None, limit_s: float = 60.0
) -> Done:
    """Run it to its end."""
    process = await start_command(*arguments, env=env)
    return await ended(process, limit_s=limit_s)


async def printed(process: asyncio.subprocess.Process, words: bytes) -> None:
    """Wait until a started command has printed these words; fails where it ends without them."""
    assert process.stdout is not None
    seen = b""
    while words not in seen:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        assert line, seen
        seen += line


async def ended(process: asyncio.subprocess.Process, *, limit_s: float = 60.0) -> Done:
    """Wait for a started command; it is killed where it takes too long."""
    try:
        out, err = await asyncio.wait_for(process.communicate(), limit_s)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


def on_terminal(
    *arguments: str,
    env: Mapping[str, str],
    columns: int = 80,
    lines: int = 24,
    typed: bytes = b"",
) -> tuple[int, str]:
    """Run it on a terminal of this size, where `typed` waits for the first question; its exit code
    and everything that the terminal got."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=dict(env), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    os.write(ours, typed)
    seen = bytearray()
    deadline_s = time.monotonic() + 60.0
    try:
        while time.monotonic() < deadline_s:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the last one that had the terminal open has gone
                break
            if not piece:
                break
            seen += piece
        return process.wait(10), seen.decode("utf-8", "replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def command(*arguments: str, code: int = 0) -> Done:
    """Run it in this process to its end, which is to be with `code`."""
    done = here(*arguments)
    assert done.code == code, done.out + done.err
    return done
