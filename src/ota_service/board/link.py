# SPDX-License-Identifier: GPL-3.0-or-later
"""The link to one chip: download mode, the stub loader, and its flash, through esptool.

The only place that talks to a chip. Blocking; one `EspLink` per thread. The port is opened
elsewhere and passed in, so that it is closed whatever happens here (a failed detection leaves
it open: esp32.md, "Talking to the chip").
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ota_service.board import esptool_setup
from ota_service.board.chip import ChipInfo
from ota_service.errors import OtaError
from ota_service.formats.flashops import PAGE_BYTES, SECTOR_BYTES

import esptool.cmds as cmds  # isort: skip  (after esptool_setup)
from esptool.loader import DEFAULT_TIMEOUT, ESPLoader  # isort: skip
from esptool.reset import HardReset  # isort: skip
from esptool.util import FatalError, flash_size_bytes  # isort: skip
from serial import SerialException  # isort: skip

if TYPE_CHECKING:
    from serial import SerialBase

    from ota_service.board.flash import Progress
    from ota_service.board.stream import SlotStream

ROM_BAUD = 115_200
BAUD_LADDER = (2_000_000, 1_500_000, 921_600, 460_800, 230_400, ROM_BAUD)
MAX_SPI_BYTES = 64
"""One SPI user command carries at most the 16 words of the controller's buffer."""

# SPI user commands: bits of SPI_USER, and of SPI_CMD (ESP32 TRM, "SPI controller")
_USR_COMMAND, _USR_ADDR, _USR_MISO, _USR_MOSI = 1 << 31, 1 << 30, 1 << 28, 1 << 27
_CMD_USR = 1 << 18
_WREN, _PAGE_PROGRAM, _RDSR = 0x06, 0x02, 0x05
_WIP = 0x01
_BP_MASK, _TB, _SEC = 0x1C, 0x20, 0x40
_POLLS = 200

_ERRORS = (FatalError, SerialException, OSError, struct.error, StopIteration)


def bauds_to_try(highest: int) -> list[int]:
    """The speeds to try, fastest first: `highest` itself, then the usual ones below it."""
    return [highest, *[baud for baud in BAUD_LADDER if baud < highest]]


Identified = Callable[[str], None]
"""Called with the MAC of the chip that answered; raises to go no further."""


class EspLink:
    """A chip in download mode with the stub loader running; implements `board.flash.Flash`.

    baud: the speed in use. chip: what it is. running: it was restarted into its firmware.
    """

    def __init__(self, esp: Any, port: SerialBase, chip: ChipInfo, baud: int) -> None:
        self._esp = esp
        self._port = port
        self.chip = chip
        self.baud = baud
        self.running = False

    @classmethod
    def connect(
        cls, port: SerialBase, *, baud: int, attempts: int = 3, identified: Identified | None = None
    ) -> EspLink:
        """Reset the chip into download mode, start the stub loader, raise the speed.

        port: an open port. baud: the highest speed to use; lower ones are tried by themselves.
        identified: called with the MAC before anything but fuses is touched; may raise.
        Raises OtaError `no-answer`; `secure-download` where the chip answers but lets nobody
        read its flash.
        """
        esptool_setup.install()
        for speed in bauds_to_try(baud):
            link = cls._connect_at(port, speed, attempts, identified)
            if link is not None:
                return link
        raise OtaError("no-answer", "The chip answers, but no speed of the port can be used.")

    @classmethod
    def _connect_at(
        cls, port: SerialBase, baud: int, attempts: int, identified: Identified | None
    ) -> EspLink | None:
        try:
            port.baudrate = ROM_BAUD
            esp = cmds.detect_chip(port, ROM_BAUD, "default-reset", False, attempts)
            if esp.secure_download_mode:
                raise OtaError("secure-download")
            mac = _mac(esp)
            if identified is not None:
                identified(mac)
            esp = cmds.run_stub(esp)
        except _ERRORS as error:
            raise OtaError("no-answer", _no_answer(error)) from error
        if not esp.IS_STUB:
            raise OtaError("no-answer", "The stub loader could not be started on the chip.")
        try:
            if baud != ROM_BAUD:
                esp.change_baud(baud)
                _prove(esp)
            cmds.attach_flash(esp)
            chip = _chip_info(esp, mac)
            if chip.flash_bytes is not None:
                esp.flash_set_parameters(chip.flash_bytes)
        except _ERRORS as error:
            if baud == ROM_BAUD:
                raise OtaError("link-lost", _lost(error)) from error
            return None  # the port or the board does not hold this speed
        return cls(esp, port, chip, baud)

    # --- Flash

    def read(self, offset: int, size_bytes: int) -> bytes:
        """The bytes at `offset`; their digest is checked on the way."""
        with _lost_link():
            return bytes(self._esp.read_flash(offset, size_bytes))

    def md5(self, offset: int, size_bytes: int) -> str:
        """The MD5 of a region, computed by the stub loader."""
        with _lost_link():
            return str(self._esp.flash_md5sum(offset, size_bytes))

    def erase(self, offset: int, size_bytes: int) -> None:
        """Erase whole sectors."""
        if offset % SECTOR_BYTES or size_bytes % SECTOR_BYTES:
            raise ValueError(f"erase of {size_bytes:#x} bytes at {offset:#x}")
        with _lost_link():
            self._esp.erase_region(offset, size_bytes)

    def program(self, offset: int, data: bytes) -> None:
        """Program one page without an erase, by SPI user commands through registers.

        The stub's own write commands always erase. Write enable precedes every program, and
        nothing crosses a page: silicon wraps inside it (esp32.md, "Talking to the chip").
        """
        if not data or offset % PAGE_BYTES + len(data) > PAGE_BYTES:
            raise ValueError(f"program of {len(data)} bytes at {offset:#x}")
        with _lost_link():
            for at in range(0, len(data), MAX_SPI_BYTES):
                self._spi_program(offset + at, data[at : at + MAX_SPI_BYTES])

    def write_stream(self, offset: int, stream: SlotStream, progress: Progress) -> None:
        """Erase the slot's sectors and write the stream; returns when it is in flash."""
        esp = self._esp
        with _lost_link():
            esp.flash_defl_begin(stream.size_bytes, stream.compressed_bytes, offset)
        # The stub loader acknowledges a block before it inflates and writes it, so what a block
        # takes is waited for with the next one.
        timeout_s = DEFAULT_TIMEOUT
        done = 0
        for seq, block in enumerate(stream.blocks):
            progress(done)  # between two blocks the stub loader is in sync: the place to stop at
            with _lost_link():
                esp.flash_defl_block(block.data, seq, timeout=timeout_s)
            done += block.inflated_bytes
            timeout_s = cmds._get_flash_defl_block_timeout(esp, block.inflated_bytes)
        with _lost_link():
            # Not answered before the last block is in flash: the barrier before any MD5.
            esp.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR, timeout=timeout_s)
        progress(stream.size_bytes)

    # --- the chip

    def protection(self) -> Protection:
        """What the flash chip's block-protect bits cover."""
        with _lost_link():
            status = int(self._esp.read_status(1)) & 0xFF
        return Protection(status, self.chip.flash_bytes)

    def reconnect(self) -> None:
        """Into download mode again, after the firmware ran; the same chip must answer."""
        mac = self.chip.mac

        def same(found: str) -> None:
            if found != mac:
                raise OtaError(
                    "wrong-board",
                    f"Another board answers on the port: {found} instead of {mac}.",
                )

        again = EspLink.connect(self._port, baud=self.baud, identified=same)
        self._esp, self.baud = again._esp, again.baud
        self.running = False

    def restart(self) -> None:
        """Leave download mode: reset the chip into its firmware, at the log's speed."""
        with _lost_link():
            self._port.baudrate = ROM_BAUD
            self._port.reset_input_buffer()
            self._esp.hard_reset()
        self.running = True

    def _spi_program(self, address: int, data: bytes) -> None:
        esp = self._esp
        base = esp.SPI_REG_BASE
        cmd, addr = base, base + 0x04
        usr, usr1 = base + esp.SPI_USR_OFFS, base + esp.SPI_USR1_OFFS
        usr2, w0 = base + esp.SPI_USR2_OFFS, base + esp.SPI_W0_OFFS
        mosi_len, miso_len = base + esp.SPI_MOSI_DLEN_OFFS, base + esp.SPI_MISO_DLEN_OFFS
        opcode_len = 7 << 28
        old_usr, old_usr2 = esp.read_reg(usr), esp.read_reg(usr2)
        padded = data + b"\xff" * (-len(data) % 4)
        words = struct.unpack(f"<{len(padded) // 4}I", padded)
        setup = [
            (usr1, 23 << 26),
            (addr, address << 8 if esp.SPI_ADDR_REG_MSB else address),
            (mosi_len, len(data) * 8 - 1),
            *[(w0 + 4 * i, word) for i, word in enumerate(words)],
        ]
        enable = [(usr, _USR_COMMAND), (usr2, opcode_len | _WREN), (cmd, _CMD_USR)]
        go = [(usr, _USR_COMMAND | _USR_ADDR | _USR_MOSI), (usr2, opcode_len | _PAGE_PROGRAM)]
        self._write_regs(setup)
        # Register writes carry no checksum, and a wrong address would change another place:
        # look at it before the command starts.
        if esp.read_reg(addr) != setup[1][1] or esp.read_reg(mosi_len) != setup[2][1]:
            raise FatalError("a register of the chip did not take its value")
        self._write_regs(enable)
        self._wait_spi(cmd)
        self._write_regs(go)
        self._write_regs([(cmd, _CMD_USR)])
        self._wait_spi(cmd)
        for _ in range(_POLLS):
            self._write_regs(
                [
                    (usr, _USR_COMMAND | _USR_MISO),
                    (usr2, opcode_len | _RDSR),
                    (miso_len, 7),
                    (w0, 0),
                    (cmd, _CMD_USR),
                ]
            )
            self._wait_spi(cmd)
            if not esp.read_reg(w0) & _WIP:
                break
        else:
            raise FatalError("the flash chip stays busy after a program")
        self._write_regs([(usr, old_usr), (usr2, old_usr2)])

    def _wait_spi(self, cmd: int) -> None:
        for _ in range(_POLLS):
            if not self._esp.read_reg(cmd) & _CMD_USR:
                return
        raise FatalError("the SPI controller stays busy")

    def _write_regs(self, writes: Sequence[tuple[int, int]]) -> None:
        """Several register writes in one packet: the stub takes many 16-byte records."""
        records = b"".join(struct.pack("<IIII", at, v, 0xFFFFFFFF, 0) for at, v in writes)
        esp = self._esp
        esp.check_command("write target memory", esp.ESP_CMDS["WRITE_REG"], records)


def leave_download_mode(port: SerialBase) -> None:
    """Reset whatever is behind a port by its lines alone, as far as the port allows.

    For a chip that could not be talked to, or was not the one that is meant: it may wait in
    download mode, and would go on to do so.
    """
    with contextlib.suppress(Exception):
        if not port.is_open:
            port.open()
        HardReset(port)()


@dataclass(frozen=True, slots=True)
class Protection:
    """A flash chip's first status register, and what its block-protect bits cover."""

    status: int
    flash_bytes: int | None

    def covers(self, offset: int, size_bytes: int) -> bool:
        """Whether a place is protected, by the Winbond scheme that most chips follow.

        BP2..0 protect the upper (TB = 0) or lower part of the flash in powers of two of 1/64;
        what is not understood counts as covered.
        """
        level = (self.status & _BP_MASK) >> 2
        if level == 0:
            return False
        if self.status & _SEC or level == 7 or self.flash_bytes is None:
            return True
        covered = (self.flash_bytes // 64) << (level - 1)
        if self.status & _TB:
            return offset < covered
        return offset + size_bytes > self.flash_bytes - covered


@contextmanager
def _lost_link() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise OtaError("link-lost", _lost(error)) from error


def _lost(error: BaseException) -> str:
    return f"The connection to the board was lost: {_first_line(error)}."


def _no_answer(error: BaseException) -> str:
    return f"No ESP32 answered on the port: {_first_line(error)}."


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


def _mac(esp: Any) -> str:
    mac = esp.read_mac("BASE_MAC")
    if mac is None:
        raise FatalError("the chip has no MAC address in its fuses")
    return ":".join(f"{byte:02x}" for byte in mac)


def _prove(esp: Any) -> None:
    """A few exchanges at the new speed; raises FatalError where it does not hold."""
    for _ in range(3):
        first = esp.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR)
        if first != esp.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR):
            raise FatalError("answers differ at this speed")


def _chip_info(esp: Any, mac: str) -> ChipInfo:
    size = cmds.detect_flash_size(esp)
    return ChipInfo(
        name=esp.CHIP_NAME,
        chip_id=int(esp.IMAGE_CHIP_ID),
        mac=mac,
        revision=int(esp.get_chip_revision()),
        flash_bytes=flash_size_bytes(size) if size else None,
        flash_encrypted=bool(esp.get_flash_encryption_enabled()),
        secure_boot=bool(esp.get_secure_boot_enabled()),
    )
