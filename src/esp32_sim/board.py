# SPDX-License-Identifier: GPL-3.0-or-later
"""One simulated board: power, reset circuit, wire, and what runs on the chip.

EN and IO0 follow the usual two-transistor circuit: DTR asserted alone pulls IO0 low, RTS
asserted alone pulls EN low, both or none pull nothing. EN rises slowly, and IO0 is sampled when
it has risen.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esp32_sim import bootmodel
from esp32_sim.appmodel import App
from esp32_sim.chip import Registers
from esp32_sim.chips import ResetKind
from esp32_sim.config import FLASH_FILE, BoardConfig
from esp32_sim.core import Core, Times
from esp32_sim.events import History
from esp32_sim.faults import Faults, noise
from esp32_sim.flash import FlashOp, NorFlash, PowerLossError
from esp32_sim.images import Ending
from esp32_sim.loader_common import Leave
from esp32_sim.loader_rom import RomLoader
from esp32_sim.loader_stub import StubLoader, is_stub
from esp32_sim.usb import SERIAL_JTAG_ACTIONS, USB_BAUD, Lines, leaves_bus, otg_action

ROM_BAUD = 115200
# What the stub takes from the ROM's UART structure, which CHANGE_BAUDRATE does not change (measured
# on Espressif's ESP32 ROM, esp32.md; espressif/esp-flasher-stub, main.c).
STUB_BAUD = 115200
# A UART samples a byte's last bit wrongly from about this difference on.
BAUD_TOLERANCE = 0.03
UART_FIFO_BYTES = 128
# How long a host may take between two changes of the lines that belong together.
BOTH_LINES_S = 1.0
# How long a chip without a bootable app takes to its next attempt (RTC watchdog).
RETRY_S = 1.0

# What resets the chip at an app's end.
RESETS: dict[Ending, ResetKind] = {
    "exception": "rtc-watchdog",
    "stuck": "rtc-watchdog",
    "panic": "cpu",
    "loop": "system",
    "watchdog": "timer-watchdog",
    "restart": "cpu",
    "deep-sleep": "sleep",
    "brownout": "cpu",
    "brownout-tagged": "system",
    "brownout-reset": "brown-out",
}
# What download mode is called, and what the ROM says, where it waits at one interface only.
NARROWED = {
    "uart0": ("UART0_BOOT", "wait uart0 download"),
    "usb": ("USB_BOOT", "wait usb download"),
}


class Board:
    """A board in a running event loop; `directory` holds its flash and settings."""

    def __init__(self, directory: Path, config: BoardConfig) -> None:
        self.directory = directory
        self.config = config
        self.flash = NorFlash.open_file(directory / FLASH_FILE, seed=config.seed)
        self.flash.on_op = self._count_op
        self.ops_by: dict[str, int] = {}
        self.times = self._times()
        self.history = History()
        self.faults = Faults()
        self.random = random.Random(config.seed)
        self.state = "off"
        self.app: dict[str, Any] = {}
        self.registers = Registers(config, self.flash)
        self.registers.on_watchdog = self._start_watchdog
        self.deliver: Callable[[bytes], None] | None = None
        # Called where the chip's own USB port leaves the bus, with the seconds until it is back;
        # None: it does not come back by itself.
        self.on_leave_bus: Callable[[float | None], None] | None = None
        self.client_baud = ROM_BAUD
        self.chip_baud = ROM_BAUD
        self.dtr = self.rts = False
        self._powered = False
        self._en_low = False
        # Who pulls EN and IO0: the reset circuit, and other pins that are wired to them.
        self._by_lines = self._by_wire = (False, False)
        self._io0_changes: deque[tuple[float, bool]] = deque([(0.0, False)], maxlen=64)
        self._loop = asyncio.get_running_loop()
        self._rise: asyncio.TimerHandle | None = None
        self._rises_s = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._boot_button = False
        # Why the ROM goes into download mode: its pin when EN rose, or what the USB peripheral's
        # mark was at the reset.
        self._strapped = self._usb_mark = self._usb_marked = False
        self._was_powered = False
        self._life = 0
        self._core: Core | None = None
        self._rom: RomLoader | None = None
        self._task: asyncio.Task[None] | None = None
        self._sending: deque[tuple[float, asyncio.TimerHandle]] = deque()
        self._tx_free_s = 0.0
        self._rx_free_s = 0.0

    def _times(self) -> Times:
        if not self.config.timed:
            return Times.off()
        return Times(
            latency_s=self.config.bridge_latency_ms / 1000, erase_factor=self.config.erase_factor
        )

    def _count_op(self, op: FlashOp) -> None:
        self.ops_by[op.who] = self.ops_by.get(op.who, 0) + 1

    # --- power

    def power_on(self) -> None:
        """Apply power; the chip starts when EN has risen."""
        if self._powered:
            return
        self._powered = True
        self.history.add("power-on")
        # When a board is switched on for the first time, its port has just been plugged in.
        if self._was_powered:
            self._reset_port("power-on")
        self._was_powered = True
        if self._en_low:
            self.state = "reset"
        else:
            self._release_en(self._loop.time())

    def power_off(self, event: str = "power-off", **details: Any) -> None:
        """Take power away, between two instructions."""
        if not self._powered:
            return
        self._powered = False
        self._stop_chip()
        self.state = "off"
        self.flash.write_enabled = False
        self.history.add(event, **details)
        self._leave_bus(None)

    def close(self) -> None:
        """End the simulation of this board."""
        self.power_off()
        self.flash.close()

    def set_config(self, **changes: Any) -> None:
        """Change settings; another MAC shows at once, as if another board were there."""
        self.config = dataclasses.replace(self.config, **changes)
        self.registers.set_config(self.config)
        self.times = self._times()

    # --- the reset circuit

    def set_lines(self, dtr: bool, rts: bool, at_s: float) -> None:
        """DTR and RTS as the host drives them since `at_s`."""
        before = self.dtr, self.rts
        self.dtr, self.rts = dtr, rts
        if not self.config.reset_lines:
            return
        if self.config.usb == "serial-jtag":
            self._serial_jtag_lines(before)
        elif self.config.usb == "otg":
            self._otg_lines(before)
        else:
            self._circuit_lines(dtr, rts, at_s)

    def port_gone(self) -> None:
        """The chip's own port left the bus: nobody drives its lines."""
        self.dtr = self.rts = self._usb_mark = False

    def _serial_jtag_lines(self, before: Lines) -> None:
        now = self.dtr, self.rts
        action = SERIAL_JTAG_ACTIONS[now] if now != before else ""
        if action in ("mark", "unmark"):
            self._usb_mark = action == "mark"
        elif action == "reset" and self._powered:
            self._usb_marked = self._usb_mark or self.faults.stuck_in_download
            self._restart("usb")

    def _otg_lines(self, before: Lines) -> None:
        action = otg_action(before, (self.dtr, self.rts))
        if action and self.state in ("download", "stub", "app"):
            # ROM and stub know one way only.
            self.registers.forced_download = action == "download" and self.state == "app"
            self._restart("cpu")

    def _circuit_lines(self, dtr: bool, rts: bool, at_s: float) -> None:
        self._by_lines = rts and not dtr, dtr and not rts
        # Nobody leaves both lines asserted: what follows at once may arrive late, where the
        # host is busy, and decides by its time all the same.
        self._pulled(at_s, patience_s=BOTH_LINES_S if dtr and rts else 0.0)

    def pull(self, *, en: bool, io0: bool) -> None:
        """What else is wired to EN and IO0 pulls them low from now on, or lets them go."""
        if en and not self._by_wire[0] and self._powered:
            self._reset_port("power-on")
        self._by_wire = en, io0
        self._pulled(self._loop.time())

    def _pulled(self, at_s: float, *, patience_s: float = 0.0) -> None:
        """Whoever pulls EN and IO0, they are low while anybody does."""
        en_low, io0_low = map(max, self._by_lines, self._by_wire)
        self._io0_changes.append((at_s, io0_low))
        if en_low == self._en_low:
            if self._rise is not None:
                self._expect_rise(self._rises_s)
            return
        self._en_low = en_low
        if not self._powered:
            return
        if en_low:
            self._stop_chip()
            self.state = "reset"
        else:
            self._release_en(at_s, patience_s=patience_s)

    def _release_en(self, at_s: float, *, patience_s: float = 0.0) -> None:
        self._rises_s = at_s + self.config.en_rise_s
        self._expect_rise(max(self._rises_s, self._loop.time() + patience_s))

    def _expect_rise(self, at_s: float) -> None:
        """Look then, or when a line has changed, at what IO0 was when EN had risen."""
        if self._rise is not None:
            self._rise.cancel()
        self._rise = self._loop.call_at(at_s, self._en_risen, self._rises_s)

    def _en_risen(self, at_s: float) -> None:
        self._rise = None
        held, self._boot_button = self._boot_button, False
        io0_low = False
        for changed_s, low in self._io0_changes:
            if changed_s <= at_s:
                io0_low = low
        io0_low = io0_low or held
        self.history.add("reset", reason="EN", io0_low=io0_low)
        self._strapped = io0_low or self.faults.stuck_in_download
        self._usb_marked = self.registers.forced_download = False
        self._start_chip("power-on")

    def reset_button(self, *, boot_button: bool = False) -> None:
        """Somebody presses the board's EN button, perhaps while holding the one on IO0."""
        if self._powered and not self._en_low:
            self._stop_chip()
            self._reset_port("power-on")
            self._boot_button = boot_button
            self._release_en(self._loop.time())

    # --- the chip's life

    def _stop_chip(self) -> None:
        for timer in (self._rise, self._watchdog):
            if timer is not None:
                timer.cancel()
        self._rise = self._watchdog = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._core = self.registers.core = None
        self._rom = None
        now = self._loop.time()
        for end_s, handle in self._sending:
            if end_s > now:
                handle.cancel()
        self._sending.clear()
        self._tx_free_s = self._rx_free_s = 0.0
        self.registers.reset()
        self.app = {}

    def _restart(self, reason: ResetKind) -> None:
        """Something outside the processor resets the chip."""
        self.history.add("reset", reason=self.registers.chip.resets[reason])
        self._reset_port(reason)
        self._start_chip(reason)

    def _start_chip(self, reason: ResetKind) -> None:
        self._stop_chip()
        self._task = self._loop.create_task(self._live(reason))
        self._task.add_done_callback(self._report)

    def _start_watchdog(self, delay_s: float) -> None:
        """The host has set the always-on part's watchdog: it resets all, and the pins are read."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = self._loop.call_later(delay_s, self._watchdog_bites)

    def _watchdog_bites(self) -> None:
        self._strapped = self.faults.stuck_in_download
        self._usb_marked = self.registers.forced_download = False
        self._restart("rtc-watchdog")

    def _reset_port(self, reason: ResetKind) -> None:
        if leaves_bus(self.config, reason):
            self._leave_bus(self.config.usb_back_s)

    def _leave_bus(self, back_s: float | None) -> None:
        if self.config.usb != "bridge" and self.on_leave_bus is not None:
            self.on_leave_bus(back_s)

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._loop.call_exception_handler(
                {"message": "simulated chip failed", "exception": task.exception()}
            )

    async def _live(self, reason: ResetKind) -> None:
        self._life = 0
        try:
            while True:
                reason = await self._one_life(reason)
                self._life += 1
                self.registers.reset()
                self.history.add("reset", reason=self.registers.chip.resets[reason])
                self._reset_port(reason)
        except PowerLossError:
            # Not from within this task: it is the one to be stopped.
            operation = self.flash.op_count
            self._loop.call_soon(lambda: self.power_off("power-cut", operation=operation))

    async def _one_life(self, reason: ResetKind) -> ResetKind:
        """From one reset to the next one that the chip makes by itself; its reason."""
        rom = self.registers.chip.rom
        download = self._strapped or self._usb_marked or self.registers.forced_download
        self.registers.strap = rom.download[0] if self._strapped else rom.normal
        core = self._core = Core(self.flash, self.times, self._chip_sends, self._set_chip_baud)
        self.registers.core = core
        self.state = "bootloader"
        self._set_chip_baud(ROM_BAUD)
        core.print(self.registers.chip.rom.banner)
        if download:
            return await self._download(core, reason)
        self._print_reset(core, reason, rom.normal, "SPI_FAST_FLASH_BOOT")
        return await self._boot(core)

    def _print_reset(self, core: Core, reason: ResetKind, strap: int, mode: str) -> None:
        chip = self.registers.chip
        core.print(f"rst:{chip.resets[reason]},boot:{strap:#x} ({mode})\r\n")
        if chip.rom.saved_pc and reason not in ("power-on", "sleep"):
            core.print(chip.rom.saved_pc + "\r\n")

    async def _download(self, core: Core, reason: ResetKind) -> ResetKind:
        rom = self.registers.chip.rom
        (strap, mode), waits = rom.download, "waiting for download"
        if self.config.download_form != "joint":
            mode, waits = NARROWED[self.config.download_form]
            strap = self.registers.strap = rom.narrowed
        self._print_reset(core, reason, strap, mode)
        if self.config.download_disabled:
            await asyncio.Event().wait()
        core.print(waits + "\r\n")
        self.state = "download"
        self.history.add("download")
        self._rom = RomLoader(core, self.registers)
        leave = await _run_loader(self._rom)
        if leave.how == "ram":
            if not is_stub(self.config.chip, self._rom.ram, leave.entry):
                self.state = "crashed"
                self.history.add("crashed", entry=leave.entry)
                await asyncio.Event().wait()
            self._rom = None
            self.state = "stub"
            if self.registers.chip.stub_sets_baud:
                self._set_chip_baud(STUB_BAUD)
            self.history.add("stub")
            leave = await _run_loader(StubLoader(core, self.registers))
        self._rom = None
        await core.settle()
        if leave.how == "app":
            self._set_chip_baud(ROM_BAUD)
            return await self._boot(core)
        return "cpu"

    async def _boot(self, core: Core) -> ResetKind:
        self.state = "bootloader"
        chip = self.registers.chip
        for line in chip.rom.loading:
            core.print(line + "\r\n")
        core.spend(self.times.boot_s)
        await core.settle()
        major, minor = self.config.revision
        block_major, block_minor = self.config.block_revision
        result = bootmodel.boot(
            self.flash,
            rollback=self.config.rollback,
            anti_rollback=self.config.anti_rollback,
            secure_version=self.config.secure_version,
            table_offset=self.config.table_offset,
            silent=self.config.bootloader_log == "none",
            chip=chip,
            revision=major * 100 + minor,
            block_revision=block_major * 100 + block_minor,
            boot_keys=self.config.boot_keys,
            log=lambda line: core.print(line + "\r\n"),
        )
        self._burn(result.secure_version)
        if result.partition is None or result.image is None:
            self.history.add("boot-failed", error=result.error)
            await core.sleep(RETRY_S * self.config.time_scale)
            return "system" if result.started else chip.unbootable
        core.spend(self.times.read_s_per_mib * result.image.size / (1 << 20))
        await core.settle()
        image = self.flash.read(result.image.offset, result.image.size)
        self.state = "app"
        app = App(
            core=core,
            chip=chip,
            image=image,
            partition=result.partition,
            partitions=result.partitions,
            life=self._life,
            time_scale=self.config.time_scale,
            record=self._record_app,
            set_baud=self._set_chip_baud,
            burn=self._burn if self.config.anti_rollback else None,
            nvs_key=self.config.nvs_key,
        )
        self.app = app.describe()
        self.history.add("boot", slot=result.slot, index=result.index, offset=result.offset)
        ending = await app.run()
        return RESETS[ending]

    def _record_app(self, event: str, **details: Any) -> None:
        self.history.add(event, **details)
        if event == "asleep":
            self._leave_bus(None)

    def _burn(self, secure_version: int) -> None:
        """eFuses outlast power, and count upwards only."""
        if secure_version > self.config.secure_version:
            self.set_config(secure_version=secure_version)
            self.config.save(self.directory)
            self.history.add("burnt", secure_version=secure_version)

    # --- the wire

    def _set_chip_baud(self, baud: int) -> None:
        self.chip_baud = baud
        self.registers.baud = max(1, baud)

    def _wire_baud(self, baud: int) -> int:
        """The speed of a UART, which USB does not have."""
        return baud if self.config.usb == "bridge" else USB_BAUD

    def _garbled(self, baud: int) -> bool:
        if self.config.usb != "bridge":
            return False
        if 0 < self.config.max_baud < baud:
            return True
        return abs(self.client_baud - baud) > BAUD_TOLERANCE * baud

    def _chip_sends(self, data: bytes, at_s: float) -> float:
        """The chip transmits; returns when the last byte is in the UART's FIFO."""
        baud = self.chip_baud
        if self.state in ("bootloader", "app"):
            self.history.print(data)
        if baud <= 0 or self.faults.no_answer:
            return at_s
        if self.config.usb == "otg" and self.state == "bootloader":
            return at_s  # ROM and bootloader speak at UART0 only
        baud = self._wire_baud(baud)
        if not self.times.timed:
            self._arrives(data, baud)
            return at_s
        end_s = max(at_s, self._tx_free_s) + self.times.wire_s(len(data), baud)
        self._tx_free_s = end_s
        while self._sending and self._sending[0][0] < self._loop.time() - 1:
            self._sending.popleft()
        handle = self._loop.call_at(end_s + self.times.latency_s, self._arrives, data, baud)
        self._sending.append((end_s, handle))
        return end_s - self.times.wire_s(UART_FIFO_BYTES, baud)

    def _arrives(self, data: bytes, baud: int) -> None:
        if self.deliver is None:
            return
        if self.faults.garbage or self._garbled(baud):
            data = noise(len(data), self.random)
        elif self.faults.from_board.active():
            data = self.faults.from_board.apply(data, self.random)
        self.deliver(data)

    def host_sends(self, data: bytes) -> None:
        """Bytes from the host, at the client's baud."""
        now = self._loop.time()
        byte_s = self.times.wire_s(1, self._wire_baud(self.client_baud))
        self._rx_free_s = max(self._rx_free_s, now) + len(data) * byte_s
        core = self._core
        if core is None:
            return
        if self._rom is not None and not self._rom.synced:
            # The ROM measures the host's baud before the first command.
            self._set_chip_baud(self.client_baud)
        if self._garbled(self.chip_baud):
            data = noise(len(data), self.random)
        elif self.faults.to_board.active():
            data = self.faults.to_board.apply(data, self.random)
        core.receive(data, self._rx_free_s if self.times.timed else now, byte_s)

    def host_drained_in_s(self) -> float:
        """Seconds until what the host has sent so far has left the wire."""
        return max(0.0, self._rx_free_s - self._loop.time())


async def _run_loader(loader: RomLoader | StubLoader) -> Leave:
    try:
        await loader.run()
    except Leave as leave:
        return leave
    raise AssertionError("a loader ends by leaving")
