# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of the link: every one ends in a board that boots, and in a status that is true."""

from __future__ import annotations

import asyncio
import errno
import os
import pty
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serial.serialutil import SerialBase

from esp32_sim.images import Behaviour
from esp32_sim.process import RunningBoard, SimBoard, SimProcess, child_environment
from ota_service.link.link import EspLink
from ota_service.link.ports import ESPRESSIF_VID, PortInfo
from ota_service.link.serial_port import close_port, open_port
from tests.faults import prove, scenarios
from tests.faults.desk import Desk, require_truth

pytestmark = pytest.mark.slow

PANICS = Behaviour(ending="panic", ending_after_s=0.2)


# Of the seeds that `make prove` goes through, some that take no long timeouts: each kind of noise,
# in either direction, with registers looked at together and singly.
NOISE_SEEDS = (3, 4, 6, 9, 12, 16)


@pytest.mark.slow
def test_noise_leads_to_no_wrong_belief() -> None:
    """Bytes lost, doubled or changed at up to 1 in 1,000: updated, or as it was; never between."""
    assert prove.several([("noise", seed) for seed in NOISE_SEEDS]) == {}


@pytest.mark.slow
async def test_a_port_is_as_fast_behind_many_unplugs_as_before(tmp_path: Path) -> None:
    """Nothing about a speed outlives its update. (`make prove` pulls the cable 200 times.)"""
    assert len(await scenarios.life(tmp_path, 3)) >= 4


@pytest.mark.slow
def test_unplugged_in_a_phase_and_plugged_in_again() -> None:
    """In each phase: the board is absent, and its return finishes the job by itself."""
    seeds = range(len(scenarios.PHASES))
    assert prove.several([("unplugged", seed) for seed in seeds]) == {}


@pytest.mark.slow
def test_boards_that_answer_badly() -> None:
    """Silence, garbage, stuck in download mode: attempts are bounded, nothing is lost. A board
    that keeps rebooting is updated once it stops doing so."""
    bad = [("answers", seed) for seed in range(3)] + [("reboots", seed) for seed in range(2)]
    assert prove.several(bad) == {}


@pytest.mark.slow
async def test_failures_leave_nothing_behind(tmp_path: Path) -> None:
    """No port, thread or file descriptor more after ten failures of all kinds."""
    assert await scenarios.leaks(tmp_path, 10) == 10


# --- speeds


@pytest.mark.slow
@pytest.mark.parametrize("max_baud", [460_800, 115_200])
async def test_a_board_that_holds_no_high_speed_is_updated_at_a_lower_one(
    tmp_path: Path, max_baud: int
) -> None:
    """The wire carries noise above max_baud; the link finds the speed within one attempt."""
    async with Desk.start(tmp_path, [SimBoard("guide", config={"max_baud": max_baud})]) as desk:
        before = await desk.look()
        status = await desk.updated("1.1.0")
        assert status["boards"]["a"]["state"] == "up_to_date"
        assert "attempts" not in status["boards"]["a"]
        await desk.truth(before, "1.1.0")


@contextmanager
def opened(board: RunningBoard) -> Iterator[SerialBase]:
    """A board's port."""
    port = open_port(board.url)
    try:
        yield port
    finally:
        close_port(port)


@pytest.mark.parametrize("refusal", [ValueError, NotImplementedError, OSError])
def test_a_port_that_cannot_be_set_to_a_speed_is_used_at_a_lower_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: type[Exception]
) -> None:
    """Drivers refuse speeds by various exceptions: all mean "try the next one"."""
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, opened(sim.boards[0]) as port:
        setter = SerialBase.baudrate.fset

        def limited(self: SerialBase, baud: int) -> None:
            if baud > 230_400:
                raise refusal("Failed to set custom baud rate")
            setter(self, baud)

        limit = property(SerialBase.baudrate.fget, limited)
        monkeypatch.setattr(type(port), "baudrate", limit, raising=False)
        link = EspLink.connect(port, baud=921_600)
        assert link.baud == 230_400
        assert link.read(0x8000, 2) == b"\xaa\x50"
        link.restart()


# --- what a noisy wire must not make us believe


def test_an_answer_that_changes_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A MAC is read twice: one changed byte must not make another board of this one."""
    from esptool.loader import ESPLoader

    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, opened(sim.boards[0]) as port:
        real = ESPLoader.read_reg
        times: list[int] = []

        def read_reg(self: Any, address: int, *rest: Any, **more: Any) -> int:
            value: int = real(self, address, *rest, **more)
            if address == 0x3FF5A004 and not times:  # EFUSE_BLK0_RDATA1: the MAC's low bytes
                times.append(value)
                return value ^ 0x100
            return value

        monkeypatch.setattr(ESPLoader, "read_reg", read_reg)
        macs: list[str] = []
        link = EspLink.connect(port, baud=115_200, identified=macs.append)
        assert times, "the fault was not injected"
        assert macs == [sim.boards[0].mac]
        assert link.chip.mac == sim.boards[0].mac


@pytest.mark.parametrize("what", ["erase", "program"])
def test_a_changed_address_reaches_no_other_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whichever byte of the requests is changed: what was meant is written, or nothing is."""
    # One by one, on a slow machine too.
    monkeypatch.setattr("ota_service.link.registers.TOGETHER_MARGIN_S", 10.0)
    with SimProcess(tmp_path, [SimBoard("guide")]) as sim, opened(sim.boards[0]) as port:
        control = sim.boards[0].control
        link = EspLink.connect(port, baud=921_600)
        esp = link._esp
        real = esp.check_command
        damage = [0, 0]

        def check_command(name: str, op: int, data: bytes = b"", *rest: Any, **more: Any) -> Any:
            if op == esp.ESP_CMDS["WRITE_REG"]:
                if damage[0] <= damage[1] < damage[0] + len(data):
                    at = damage[1] - damage[0]
                    if at % 16 < 8:  # the record's address or value; the rest is constant
                        data = data[:at] + bytes([data[at] ^ 1 << damage[1] % 8]) + data[at + 1 :]
                damage[0] += len(data)
            return real(name, op, data, *rest, **more)

        monkeypatch.setattr(esp, "check_command", check_command)
        place, wanted = 0x300000, bytes(range(1, 33))
        for at in range(0, 400, 7):
            control.write_flash(place, b"\xff" * 64 if what == "program" else b"\0" * 64)
            control.start_trace()
            damage[:] = [0, at]
            try:
                if what == "erase":
                    link.erase(place, 0x1000)
                else:
                    link.program(place, wanted)
            except Exception as error:
                assert getattr(error, "code", None) == "link-lost", error
            for op in control.stop_trace():
                assert op["address"] == place, (at, op)
                assert op["kind"] == what, (at, op)
                if what == "program":
                    assert bytes.fromhex(op["data"]) == wanted, (at, op)
            if damage[0] <= at:
                break
        assert damage[0] > 60, "no request was damaged"
        link.restart()


# --- another board on the port


async def test_another_board_after_a_replug_is_left_alone(tmp_path: Path) -> None:
    """`wrong-board`: nothing written, its firmware runs again, and the port stays closed."""
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        await desk.updated("1.1.0")
        control = desk.board().control
        control.unplug()
        control.configure(mac="24:0a:c4:99:99:99")
        control.plug()
        control.start_trace()
        status = await desk.updated("1.2.0")
        board = status["boards"]["a"]
        assert (board["state"], board["error"]["code"]) == ("set_aside", "wrong-board"), board
        assert "24:0a:c4:99:99:99" in board["error"]["message"]
        assert desk.board().mac in board["error"]["message"]
        assert [op for op in control.stop_trace() if op["who"] == "loader"] == []
        control.wait_for("app", since=len(control.events()) - 5)
        opened = control.counters()["opened"]
        last = desk.run_id()
        await desk.command("update", wait_s=20)
        status = await desk.next_run(last)
        assert status["boards"]["a"]["state"] == "set_aside"
        assert control.counters()["opened"] == opened
        await desk.command("release", boards=["a"])
        await desk.command("update")
        status = await desk.wait(lambda now: now["boards"]["a"]["state"] == "up_to_date")
        assert status["boards"]["a"]["mac"] == "24:0a:c4:99:99:99"


@pytest.mark.slow
async def test_another_board_in_the_middle_of_an_update_gets_nothing(tmp_path: Path) -> None:
    """Swapped while the boot is watched: the rollback of the first one is not done to it."""
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        control = desk.board().control

        def swap() -> None:
            control.configure(mac="24:0a:c4:99:99:99")
            control.start_trace()

        with scenarios.at_phase("rolling_back", swap) as seen:
            status = await desk.updated("1.1.0", url=desk.serve("1.1.0", behaviour=PANICS))
        assert seen
        board = status["boards"]["a"]
        assert (board["state"], board["error"]["code"]) == ("set_aside", "wrong-board"), board
        assert [op for op in control.stop_trace() if op["who"] == "loader"] == []


# --- who may use the port

HOLD = (
    "import sys, serial\n"
    "from ota_service.link.serial_port import register_url_handlers\n"
    "register_url_handlers()\n"
    "port = serial.serial_for_url(sys.argv[1])\n"
    "print('held', flush=True)\n"
    "sys.stdin.read()\n"
)
CLAIM = (
    "import sys\n"
    "from ota_service.link.ownership import PORT_OWNERS\n"
    "with PORT_OWNERS.claim(sys.argv[1], 'service OTHER'):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["open", "claimed"])
async def test_a_port_in_use_is_waited_for(tmp_path: Path, way: str) -> None:
    """port-busy names who has it; no attempt is counted; when it is free the run goes on.

    A process of ours is found by its claim, before anything is opened.
    """
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        before = await desk.look()
        url, control = desk.board().url, desk.board().control
        holder = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", HOLD if way == "open" else CLAIM, url),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
        )
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        opened = control.counters().get("opened", 0)
        last = desk.run_id()
        await desk.configure(url=desk.serve("1.1.0"), version="1.1.0")
        status = await desk.wait(
            lambda now: now["boards"]["a"].get("error", {}).get("code") == "port-busy"
        )
        board = status["boards"]["a"]
        assert f"pid {holder.pid}" in board["error"]["message"]
        assert status["run"]["outcome"] == "running"
        assert board["phase"] == "waiting"
        assert "attempts" not in board
        assert control.counters().get("opened", 0) == opened
        # Not communicate(): without input Python 3.11 leaves the pipe open, and both wait.
        assert holder.stdin is not None
        holder.stdin.close()
        await holder.wait()
        status = await desk.next_run(last)
        board = status["boards"]["a"]
        assert board["state"] == "up_to_date", board
        assert "attempts" not in board
        await desk.truth(before, "1.1.0")


def test_a_device_without_permission() -> None:
    """A real tty of another user, opened without rights: the remedy says what to do."""
    if os.geteuid() != 0:
        pytest.skip("giving up rights needs them")
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    os.chmod(name, 0o600)
    code = (
        f"import os; os.setgroups([]); os.setgid({pwd.getpwnam('nobody').pw_gid}); "
        f"os.setuid({pwd.getpwnam('nobody').pw_uid})\n"
        "try:\n"
        f"    open_port({name!r}, board='left')\n"
        "except OtaError as error:\n"
        "    print(error.code, '|', error)\n"
    )
    setup = (
        "from ota_service.link.serial_port import open_port\n"
        "from ota_service.errors import OtaError\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", setup + code],
        check=True,
        capture_output=True,
        text=True,
        env=child_environment(),
    )
    os.close(master)
    os.close(slave)
    assert done.stdout.startswith("permission |"), done
    assert "group" in done.stdout
    assert errno.errorcode[errno.EACCES] not in done.stdout


# --- by MAC, under another name


@pytest.mark.slow
async def test_a_board_listed_by_its_mac_is_known_again_where_it_was(tmp_path: Path) -> None:
    """By MAC it is looked for where it was last seen; there another one is `wrong-board`."""
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        await desk.updated("1.1.0")
        last = desk.run_id()
        mac = desk.board().mac
        await desk.configure(
            url=desk.serve("1.2.0"), version="1.2.0", boards=[{"name": "m", "mac": mac}]
        )
        status = await desk.next_run(last)
        assert status["boards"]["m"]["state"] == "up_to_date", status
        control = desk.board().control
        control.unplug()
        await desk.command("update", wait_s=5)
        status = await desk.wait(lambda now: now["boards"]["m"]["state"] == "absent")
        assert status["boards"]["m"]["error"]["code"] == "no-board"
        control.configure(mac="24:0a:c4:99:99:99")
        control.plug()
        status = await desk.wait(
            lambda now: now["boards"]["m"].get("error", {}).get("code") == "wrong-board"
        )


@pytest.mark.slow
async def test_a_board_listed_by_its_mac_comes_back_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Espressif's own USB it is found by its serial number, wherever it is plugged in.

    The list of ports is made up, since a simulated board is at no USB port; all else is real.
    """
    async with Desk.start(tmp_path, [SimBoard("guide")]) as desk:
        before = await desk.look()
        control, mac = desk.board().control, desk.board().mac
        ports = [_native(desk.board().url, mac)]
        monkeypatch.setattr("ota_service.fleet.roster.list_ports", lambda: list(ports))
        board = {"name": "m", "mac": mac}

        def pull() -> None:
            ports.clear()
            control.unplug()

        with scenarios.at_phase("writing", pull) as seen:
            last = desk.run_id()
            await desk.configure(url=desk.serve("1.1.0"), version="1.1.0", boards=[board])
            status = await desk.next_run(last)
        assert seen
        assert status["boards"]["m"]["state"] == "absent", status
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        last = desk.run_id()
        ports.append(_native(control.plug(elsewhere), mac))
        status = await desk.next_run(last)
        assert status["run"]["trigger"] == "attached"
        shown = status["boards"]["m"]
        assert shown["state"] == "up_to_date", shown
        assert shown["port"].endswith("elsewhere")
        await asyncio.to_thread(require_truth, control, shown, before, "1.1.0")


def _native(url: str, mac: str) -> PortInfo:
    return PortInfo(url, location="1-2:1.0", vid=ESPRESSIF_VID, pid=0x1001, serial_number=mac)
