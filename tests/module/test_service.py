# SPDX-License-Identifier: GPL-3.0-or-later
"""A configured service without boards: its commands, changes and end, over the real protocol.

What it does with boards stands in the tests of the fleet and end to end.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpclib import GRPCError, Status

from tests.support.module_client import BUILTIN_MODEL, MODEL, ModuleProcess
from tests.support.module_client import IDLE_ATTRIBUTES as IDLE

MAC = "24:0a:c4:00:00:01"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ModuleProcess]:
    """A module for all tests of this file: to start one takes longer than most of them."""
    async with ModuleProcess.start(tmp_path_factory.mktemp("module")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def module(process: ModuleProcess) -> AsyncIterator[ModuleProcess]:
    """It, with the service OTA."""
    await process.add("OTA", IDLE)
    yield process
    for name in ("OTA", "OTA2"):
        with contextlib.suppress(GRPCError):  # where the test has removed it, or added none
            await process.remove(name)


async def error_of(module: ModuleProcess, command: dict[str, Any]) -> str:
    """The text that a client reads when a command fails."""
    with pytest.raises(GRPCError) as caught:
        await module.command("OTA", command)
    return caught.value.message or ""


@pytest.mark.slow
async def test_help_and_status_answer_at_once(module: ModuleProcess) -> None:
    """In both forms, with "ok", and get_status like the verb."""
    reply = await module.command("OTA", {"help": True})
    assert reply["ok"] is True
    assert {"update", "status", "version", "help"} <= reply["verbs"].keys()
    begun = time.monotonic()
    status = await module.command("OTA", {"command": "status"})
    assert time.monotonic() - begun < 0.1
    assert status["ok"] is True
    assert status["state"] == "idle"
    assert status["target"]["version"] == IDLE["version"]
    assert (await module.status("OTA"))["target"] == status["target"]


@pytest.mark.slow
async def test_a_pinned_board_shows_its_own_target_without_its_secrets(
    module: ModuleProcess,
) -> None:
    """What it leaves out is the service's; the others have none; it goes with the pin."""
    own = "http://other:pa55@127.0.0.1:9/rc.bin?key=t0ken"
    boards: list[dict[str, Any]] = [
        {"name": "plain"},
        {"name": "lab", "url": own, "version": "1.3.0-rc1"},
        {"name": "tagged", "version": "9"},
        {"name": "moved", "url": own},
        {"name": "digest", "sha256": "0" * 64},
    ]
    listed = [{**board, "port": f"esp32sim:///nowhere/{board['name']}"} for board in boards]
    await module.change("OTA", IDLE | {"boards": listed})
    status = await module.status("OTA")
    shown = {name: board.get("target") for name, board in status["boards"].items()}
    theirs, service = "http://***@127.0.0.1:9/rc.bin?key=***", status["target"]["url"]
    assert service == "http://***@127.0.0.1:9/app.bin?token=***"
    assert shown == {
        "plain": None,
        "lab": {"url": theirs, "version": "1.3.0-rc1"},
        "tagged": {"url": service, "version": "9"},
        "moved": {"url": theirs, "version": IDLE["version"]},
        "digest": {"url": service, "version": IDLE["version"]},
    }
    for reply in (status, await module.command("OTA", {"command": "status"})):
        assert not any(secret in repr(reply) for secret in ("other", "pa55", "t0ken", "hunter2"))
    await module.change("OTA", IDLE | {"boards": [{k: listed[1][k] for k in ("name", "port")}]})
    assert "target" not in (await module.status("OTA"))["boards"]["lab"]


async def test_mistakes_are_answered_with_what_exists(module: ModuleProcess) -> None:
    """The words reach the client through the SDK."""
    assert 'no verb "updat"; did you mean update?' in await error_of(module, {"updat": {}})
    text = await error_of(module, {"command": "update", "bords": ["a"]})
    assert "no argument bords; did you mean boards?" in text
    assert "nowhere" in await error_of(module, {"update": {"boards": ["nowhere"]}})


async def test_errors_are_plain_words_with_a_fitting_status(module: ModuleProcess) -> None:
    """No name of an exception, no file, no line: what happened, what to do, and the code."""
    commands: list[tuple[dict[str, Any], Status]] = [
        ({"updat": {}}, Status.INVALID_ARGUMENT),
        ({"update": {"boards": ["nowhere"]}}, Status.INVALID_ARGUMENT),
        ({"release": {}}, Status.INVALID_ARGUMENT),
        ({"update": {"boards": ["x" * (2 << 20)]}}, Status.INVALID_ARGUMENT),
        ({"command": "flash", "board": "a", "path": "/x", "confirm": MAC}, Status.INVALID_ARGUMENT),
    ]
    for command, status in commands:
        with pytest.raises(GRPCError) as caught:
            await module.command("OTA", command)
        text = caught.value.message or ""
        assert caught.value.status is status, text
        assert not re.search(r"Error|Exception|\.py|line \d", text), text
    await module.change("OTA", IDLE | {"boards": [{"name": "a", "mac": MAC}]})
    wrong = {"command": "flash", "board": "a", "path": "/x", "confirm": "24:0a:c4:00:00:02"}
    with pytest.raises(GRPCError) as caught:
        await module.command("OTA", wrong)
    assert caught.value.status is Status.FAILED_PRECONDITION
    assert (caught.value.message or "").endswith("[wrong-board]")


async def test_null_arguments_count_as_not_given(module: ModuleProcess) -> None:
    """They arrive as 0, which would be no board's name and no switch."""
    command = {"command": "update", "boards": None, "force": None, "wait_s": None}
    assert (await module.command("OTA", command))["ok"] is True
    assert (await module.command("OTA", {"status": None}))["ok"] is True


async def test_a_change_is_remove_and_add_or_one_call(module: ModuleProcess) -> None:
    """As newer and older servers do it; afterwards the new target counts, within 5 s."""
    begun = time.monotonic()
    await module.change("OTA", IDLE | {"version": "2"})
    assert (await module.status("OTA"))["target"]["version"] == "2"
    await module.reconfigure("OTA", IDLE | {"version": "3"})
    assert (await module.status("OTA"))["target"]["version"] == "3"
    assert time.monotonic() - begun < 5.0
    await module.remove("OTA")
    with pytest.raises(GRPCError, match="OTA"):
        await module.status("OTA")


async def test_both_models_serve_side_by_side(module: ModuleProcess) -> None:
    """Two services of one module share its journal."""
    await module.add("OTA2", IDLE | {"version": "9"}, model=BUILTIN_MODEL)
    assert (await module.status("OTA2"))["target"]["version"] == "9"
    assert (await module.status("OTA"))["target"]["version"] == IDLE["version"]


async def test_two_services_cannot_have_one_board(module: ModuleProcess) -> None:
    """The refusal names the other service, and leaves nothing behind."""
    boards = [{"name": "a", "mac": "24:0a:c4:12:34:56"}]
    await module.change("OTA", IDLE | {"boards": boards})
    with pytest.raises(GRPCError, match="OTA") as caught:
        await module.add("OTA2", IDLE | {"boards": boards}, model=MODEL)
    assert "config-invalid" in (caught.value.message or "")
    await module.add("OTA2", IDLE)
    assert (await module.status("OTA2"))["ok"] is True


@pytest.mark.slow
async def test_the_url_is_shown_without_its_secrets_until_the_end(tmp_path: Path) -> None:
    """In the status, in what commands reply, and in all that the process prints, also where a
    second signal ends it: viam-server repeats SIGTERM after 3.3 s, in the middle of a board's way
    back."""
    async with ModuleProcess.start(tmp_path) as module:
        await module.add("OTA", IDLE)
        status = await module.status("OTA")
        assert status["target"]["url"] == "http://***@127.0.0.1:9/app.bin?token=***"
        reply = await module.command("OTA", {"update": {"wait_s": 5.0}})
        assert (await module.status("OTA"))["ok"] is True
        module.process.terminate()
        await module.wait_log("SIGTERM: stopping")
        if module.process.returncode is None:
            module.process.terminate()
        # The second one may come when the loop, and with it our handler, is gone already.
        assert await module.process.wait() in (0, -signal.SIGTERM)
        assert "Traceback" not in module.log
        for secret in ("hunter2", "s3cret"):
            assert secret not in f"{status} {reply} {module.log}"
