# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that takes its owner's firmware only, end to end: the module, a server, a board."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import SimBoard, SimProcess
from ota_service.fleet import policy
from ota_service.fleet.service import shutdown
from tests.faults.desk import Desk
from tests.flash.merged_files import merged
from tests.support.firmware_server import FirmwareServer
from tests.support.host_policy import add_key, make_host, module_with
from tests.support.module_client import ModuleProcess
from tests.support.rig import PROJECT, Rig
from tests.support.signing import digest, key, public, sign
from tests.support.tuf_repository import TufRepository, in_days

pytestmark = pytest.mark.slow

OWN = key("ECDSA-P-256")


def firmware(version: str, *, signed: bool = True) -> bytes:
    """An app that runs, and says that it is `version`."""
    app = build_app(PROJECT, version, size_bytes=60_000)
    return sign(app, OWN) if signed else app


async def test_a_board_gets_what_its_owner_signed_and_nothing_else(tmp_path: Path) -> None:
    """By each way in; nothing else is written, and what was begun goes on without the owner."""
    made = TufRepository()
    made.add("app.bin", firmware("1.1.0"), "1.1.0")
    first = made.publish()
    trust = tmp_path / "trust"
    (trust / "keys").mkdir(parents=True)
    (trust / "keys" / "release.pem").write_bytes(public(OWN))
    (trust / "root.json").write_bytes(made.root)
    async with FirmwareServer.start() as server:
        base = server.url("/fw/")
        (trust / "repositories.json").write_text(json.dumps([{"url": base, "root": "root.json"}]))
        for path in (trust, *trust.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)

        def serve(files: dict[str, bytes]) -> str:
            for name, data in files.items():
                server.put(f"/fw/{name}", data)
            return f"{base}targets/app.bin"

        with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
            async with ModuleProcess.start(
                tmp_path / "machine",
                env={"OTA_SERVICE_TRUST": str(trust)},
                executable=module_with(tmp_path / "memory"),
            ) as module:
                rig = Rig(tmp_path, sim, server, module, ["a"])
                await _attacked(rig, made, serve, first)


async def test_a_policy_that_comes_holds_up_no_way_back_and_waits_for_the_right_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a restart, a board that was left alone is looked at and goes back, by its policy or
    not; and a file that is published unsigned is replaced without a person's doing."""
    host = make_host(tmp_path, monkeypatch)
    monkeypatch.setattr(policy, "MISSING_PAUSES_S", (0.05,))
    board = SimBoard("micro-rdk", otadata="valid", slot="ota_1", config={"rollback": True})
    async with Desk.start(tmp_path, [board]) as desk:
        silent = Behaviour(confirm_after_s=None)
        wanted = {"url": desk.serve("1.1.0", behaviour=silent), "version": "1.1.0"}
        await desk.configure(**wanted, confirm_timeout_s=2)
        await desk.wait(lambda now: now["boards"]["a"]["state"] == "awaiting_confirmation")
        await shutdown()
        desk.service = None
        add_key(host, public(OWN))
        await desk.configure(**wanted, confirm_timeout_s=2)
        status = await desk.wait(lambda now: now.get("run", {}).get("outcome") == "failed")
        now = status["boards"]["a"]
        assert (now["state"], now["version"]) == ("rolled_back", "1.0.0"), status
        assert "did not confirm itself" in now["error"]["message"]
        assert desk.board().control.running()["version"] == "1.0.0"

        app = build_app(PROJECT, "2.0.0", size_bytes=60_000, behaviour=Behaviour(confirm_after_s=0))
        before, url = desk.run_id(), desk.server.put("/2.bin", app)
        await desk.configure(url=url, version="2.0.0", confirm_timeout_s=2)
        status = await desk.next_run(before)
        assert status["error"]["code"] == "signature-missing", status
        desk.server.put("/2.bin", sign(app, OWN))
        status = await desk.wait(lambda now: now["run"]["outcome"] == "succeeded")
        assert (status["run"]["trigger"], "error" in status) == ("resumed", False)
        assert status["boards"]["a"]["version"] == "2.0.0"


@pytest.mark.parametrize("confirm_after_s", [None, 0.1])
async def test_a_rollback_waits_no_longer_than_the_app_has_time(
    tmp_path: Path, confirm_after_s: float | None
) -> None:
    """Also where nothing looks at the board any more: nothing is fetched, and no policy asked."""
    board = SimBoard("micro-rdk", otadata="valid", slot="ota_1", config={"rollback": True})
    async with Desk.start(tmp_path, [board]) as desk:
        url = desk.serve("1.1.0", behaviour=Behaviour(confirm_after_s=confirm_after_s))
        wanted: dict[str, Any] = {"url": url, "version": "1.1.0", "confirm_timeout_s": 2}
        await desk.configure(**wanted)
        await desk.wait(lambda now: now["boards"]["a"]["state"] == "awaiting_confirmation")
        await shutdown()
        desk.service, asked = None, len(desk.server.requests)
        await desk.configure(**wanted, auto_update=False)
        async with asyncio.timeout(30):
            while (reply := (await desk.command("rollback"))["boards"]["a"]).get("error"):
                assert reply["error"]["code"] == "awaiting-confirmation"
                await asyncio.sleep(0.1)  # a wait that no process holds has no event
        assert (reply["version"], desk.status()["boards"]["a"]["state"]) == ("1.0.0", "rolled_back")
        assert desk.board().control.running()["version"] == "1.0.0"
        assert len(desk.server.requests) == asked


async def _attacked(rig: Rig, made: TufRepository, serve: Any, first: dict[str, bytes]) -> None:
    control = rig.board().control

    async def told(**target: Any) -> dict[str, Any]:
        before = await rig.run_id()
        await rig.configure(**target)
        return await rig.next_run(before)

    url = serve(first)
    status = await told(url=url, version="1.1.0")
    assert status["boards"]["a"]["state"] == "up_to_date", status
    assert status["trust"] == {"requires": ["secure-boot-v2", "repository"]}
    run = (await rig.command("history"))["runs"][0]
    (by,) = run["boards"]["a"]["allowed_by"]
    assert by["keys"] == {digest(OWN).hex(): "release.pem"}
    assert by["metadata"] == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}

    evil = rig.server.put("/evil.bin", firmware("6.6.6", signed=False))
    made.add("plain.bin", firmware("2.0.0", signed=False), "2.0.0")
    made.signed["timestamp"].expires = in_days(10)
    second = made.publish()
    stolen = {name: firmware("6.6.6", signed=False) for name in first if name.startswith("target")}
    whole = rig.folder / "whole.bin"
    whole.write_bytes(merged("ota-guide"))
    control.start_trace()
    for files, target, code in (
        (stolen, {"url": url, "version": "1.2.0"}, "version-mismatch"),
        ({}, {"url": evil, "version": "6.6.6"}, "signature-untrusted"),
        (second, {"url": url.replace("app", "plain"), "version": "2.0.0"}, "signature-missing"),
        (first, {"url": url, "version": "1.1.1"}, "replayed"),
    ):
        serve(files)
        status = await told(**target)
        assert status["error"]["code"] == code, status
    with pytest.raises(Exception, match="signature-untrusted"):
        await rig.command("flash", board="a", path=str(whole), confirm=status["boards"]["a"]["mac"])
    assert [op for op in control.stop_trace() if op["who"] == "loader"] == []

    serve(second)
    status = await told(url=url, version="1.1.0")
    assert "2.0.0" not in str(status["boards"]["a"].get("version"))
    assert "expires at" in status["trust"]["notice"]
    made.add("app.bin", firmware("3.0.0"), "3.0.0")
    made.signed["timestamp"].expires = in_days(-1)
    serve(made.publish())
    status = await told(url=url, version="3.0.0")
    assert status["error"]["code"] == "metadata-expired"
    # What this host allowed before goes on, and so does the way back.
    status = await told(url=url, version="1.1.0")
    assert status["run"]["outcome"] == "succeeded", status
    reply = await rig.command("rollback")
    assert reply["boards"]["a"]["version"] != "1.1.0", reply
