# SPDX-License-Identifier: GPL-3.0-or-later
"""What a whole run leaves behind holds no secret, in no form: log, replies, history, disk.

And: the same url with another file under the same version, as the module shows it.
"""

from __future__ import annotations

import base64
import json
import logging
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from grpclib import GRPCError

from esp32_sim.images import Behaviour
from esp32_sim.nvsmodel import nvs_init
from esp32_sim.process import SimBoard, SimProcess
from ota_service.firmware.target import Target
from ota_service.firmware.urls import redact_url
from ota_service.fleet.settings import BoardEntry, Settings
from tests.flash.merged_files import merged
from tests.support.firmware_server import FirmwareServer
from tests.support.module_client import ModuleProcess
from tests.support.rig import NAME, Rig

PASSWORD = "p@ss/w0rd+hunter2"
TOKEN = "t0ken/of=the&run"
USER = "operator-7"


def forms(secret: str) -> Iterator[str]:
    """A secret as it may be written."""
    raw = secret.encode()
    yield secret
    yield quote(secret, safe="")
    yield json.dumps(secret)[1:-1]
    # As a part of something longer, base64 begins at one of three places.
    for padding in range(3):
        encoded = base64.b64encode(b"x" * padding + raw).decode().rstrip("=")
        yield encoded[4 if padding else 0 :][:-2]


def assert_hidden(text: str, secrets: list[str]) -> None:
    """No secret stands in `text`, in no form."""
    for secret in secrets:
        for form in forms(secret):
            assert form not in text, (secret, text[max(0, text.find(form) - 200) :][:400])


def on_disk(folder: Path) -> tuple[str, list[Path]]:
    """Names and contents of everything that the module keeps, and the files."""
    files = [path for name in ("viam", "data") for path in (folder / name).rglob("*")]
    text = "\n".join(str(path.relative_to(folder)) for path in files)
    for path in files:
        if path.is_file() and path.suffix != ".bin":
            text += "\n" + path.read_bytes().decode("latin-1")
    return text, files


@pytest.mark.slow
async def test_a_run_leaves_no_secret_anywhere(tmp_path: Path) -> None:
    """At debug level: an update with a password and a token, by an app that prints its keys, a
    firmware that panics after printing them, a download that fails, and a flash.
    """
    prints = Behaviour(print_secrets=True)
    panics = Behaviour(print_secrets=True, ending="panic", ending_after_s=0.3)
    folder = tmp_path / "machine"
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        async with (
            FirmwareServer.start() as server,
            ModuleProcess.start(folder, arguments=["--log-level=debug"]) as module,
        ):
            rig = Rig(tmp_path, sim, server, module, ["a"])
            state = nvs_init(bytearray(rig.nvs()))
            stored = [
                value.decode()
                for (_, key), (kind, value) in state.items.items()
                if kind == "string" and key != "OTA_VERSION" and len(value) >= 4
            ]
            assert len(stored) == 5
            urls = {"user_info": f"{USER}:{quote(PASSWORD, safe='')}"}
            urls["query"] = f"token={quote(TOKEN, safe='')}"
            login = f"{USER}:{PASSWORD}"
            seen: list[Any] = []
            for version, behaviour in (("1.1.0", prints), ("1.2.0", panics)):
                image = rig.image(version, behaviour=behaviour)
                server.put(f"/{version}.bin", image, login=login)
                before = await rig.run_id()
                url = server.url(f"/{version}.bin", **urls)
                await rig.configure(url=url, version=version)
                seen.append(await rig.next_run(before))
            assert seen[0]["boards"]["a"]["state"] == "up_to_date"
            assert seen[1]["boards"]["a"]["state"] == "rolled_back"
            before = await rig.run_id()
            await rig.configure(url=server.url("/gone.bin", **urls), version="1.3.0")
            seen.append(await rig.next_run(before))
            assert seen[2]["error"]["code"] == "http-status"
            server.put("/m.bin", merged(flash_mb=8, behaviour=panics), login=login)
            wanted = {"board": "a", "confirm": sim.boards[0].mac, "keep_nvs": True, "wait_s": 60}
            for name in ("/m.bin", "/nothing.bin"):
                with pytest.raises(GRPCError) as caught:
                    await rig.command("flash", url=server.url(name, **urls), **wanted)
                seen.append(str(caught.value))
            history = await rig.command("history", boot_log=True)
            assert any("Guru Meditation" in str(run["boards"]) for run in history["runs"])
            assert json.dumps(history).count("ROBOT_SECRET=***") >= 2  # it was printed, and hidden
            seen += [history, await rig.command("help"), await module.status(NAME)]
            log = module.log
    text, files = on_disk(folder)
    assert len(files) > 8
    assert "***@127.0.0.1" in json.dumps(seen)
    everything = f"{log}\n{json.dumps(seen)}\n{seen!r}\n{text}"
    assert_hidden(everything, [PASSWORD, TOKEN, *stored])
    assert USER not in everything
    for path in files:
        private = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert stat.S_IMODE(path.stat().st_mode) == private, path


def test_no_repr_shows_a_url(caplog: pytest.LogCaptureFixture) -> None:
    """Values end up in traces and debug logs as their repr."""
    caplog.set_level(logging.DEBUG)
    url = f"https://{USER}:{quote(PASSWORD, safe='')}@h/a.bin?token={quote(TOKEN, safe='')}"
    target = Target(url, "1.0")
    entry = BoardEntry("a", port="/dev/x", url=url)
    settings = Settings("OTA", target, boards=(entry,))
    shown = redact_url(url)
    for value in (target, entry, settings, shown, [settings], {"a": entry}):
        assert_hidden(f"{value!r} {value}", [PASSWORD, TOKEN, USER])


@pytest.mark.slow
async def test_another_file_under_the_same_version_is_said_and_not_installed(
    tmp_path: Path,
) -> None:
    """The status tells it; boards that hold the version are left alone, unless by force."""
    async with Rig.start(tmp_path, [SimBoard("guide")]) as rig:
        status = await rig.updated("1.1.0")
        assert "notice" not in status["target"]
        rig.server.put("/1.1.0.bin", rig.image("1.1.0", seed=5))
        rig.board().control.start_trace()
        before = await rig.run_id()
        await rig.command("update", wait_s=30)
        status = await rig.next_run(before)
        assert "another file under this version" in status["target"]["notice"]
        assert status["boards"]["a"]["state"] == "up_to_date"
        assert [op for op in rig.board().control.stop_trace() if op["who"] == "loader"] == []
        assert "another file under this version" in rig.module.log

        rig.board().control.start_trace()
        before = await rig.run_id()
        await rig.command("update", force=True, wait_s=60)
        status = await rig.next_run(before)
        assert status["boards"]["a"]["state"] == "up_to_date"
        assert [op for op in rig.board().control.stop_trace() if op["who"] == "loader"]

        before = await rig.run_id()
        await rig.configure(url=rig.server.url("/1.1.0.bin"), version="1.1.1")
        status = await rig.next_run(before)
        assert "another file" not in status["target"]["notice"]
