# SPDX-License-Identifier: GPL-3.0-or-later
"""The link to one chip: download mode, the stub loader, and its flash, through esptool.

The only place that talks to a chip. Blocking; one `EspLink` per thread. The port is opened
elsewhere and passed in, so that it is closed whatever happens here (a failed detection leaves
it open: esp32.md, "Talking to the chip").
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

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
_WREN, _PAGE_PROGRAM, _RDSR, _SECTOR_ERASE = 0x06, 0x02, 0x05, 0x20
_OPCODE_BITS = 7 << 28
_WIP = 0x01
_BP_MASK, _TB, _SEC = 0x1C, 0x20, 0x40
_POLLS = 200
_BUSY_LIMIT_S = 5.0
"""Data sheets allow a sector erase 0.4 s, worn chips take longer."""

CHECKED_BYTES = 32
"""Programs up to this size change what is in use (entries' states, otadata), so their bytes are
looked at in the controller's buffer before the command starts. Longer ones go to blank flash,
where a byte that was changed on the wire is found when it is read back."""

_ERRORS = (FatalError, SerialException, OSError, struct.error, StopIteration)


def bauds_to_try(highest: int) -> list[int]:
    """The speeds to try, fastest first: `highest` itself, then the usual ones below it."""
    return [highest, *[baud for baud in BAUD_LADDER if baud < highest]]


PROOF_TIMEOUT_S = 0.5
"""How long one answer at a new speed is waited for, against milliseconds that it takes."""

STARTS = 2
"""How often the stub loader is sent to a chip that answered: its 7 kB go at the ROM's speed, each
block with a checksum, and one damaged byte ends it."""


class _NotStarted(Exception):
    """The chip answered, but its stub loader did not start."""


Read = TypeVar("Read")

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
            for again in reversed(range(STARTS)):
                try:
                    link = cls._connect_at(port, speed, attempts, identified)
                    break
                except _NotStarted as error:
                    if not again:
                        raise OtaError("no-answer", _no_answer(error)) from error
            if link is not None:
                return link
        raise OtaError("no-answer", "The chip answers, but no speed of the port can be used.")

    @classmethod
    def _connect_at(
        cls, port: SerialBase, baud: int, attempts: int, identified: Identified | None
    ) -> EspLink | None:
        try:
            port.baudrate = ROM_BAUD
            # esptool waits for the stub loader's first word by the port's own timeout.
            port.timeout = DEFAULT_TIMEOUT
            esp = cmds.detect_chip(port, ROM_BAUD, "default-reset", False, attempts)
        except _ERRORS as error:
            raise OtaError("no-answer", _no_answer(error)) from error
        try:
            if esp.secure_download_mode:
                raise OtaError("secure-download")
            mac = _twice(lambda: _mac(esp))
            if identified is not None:
                identified(mac)
            esp = cmds.run_stub(esp)
            if not esp.IS_STUB:
                raise FatalError("The stub loader could not be started on the chip")
        except _ERRORS as error:
            raise _NotStarted(str(error)) from error
        try:
            if baud != ROM_BAUD:
                _change_baud(esp, baud)
                _prove(esp)
            cmds.attach_flash(esp)
            chip = _twice(lambda: _chip_info(esp, mac))
            if chip.flash_bytes is not None:
                esp.flash_set_parameters(chip.flash_bytes)
        except _ERRORS as error:
            if baud == ROM_BAUD:
                raise OtaError("link-lost", _lost(error)) from error
            return None  # the port or the board does not hold this speed
        return cls(esp, port, chip, baud)

    # --- Flash

    def read(self, offset: int, size_bytes: int) -> bytes:
        """The bytes at `offset`; their digest is checked on the way.

        It is asked for once more by another command: requests carry no checksum, and one whose
        address was changed on the wire is answered from there, with that place's digest.
        """
        with _lost_link():
            data = bytes(self._esp.read_flash(offset, size_bytes))
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if self._esp.flash_md5sum(offset, size_bytes) != digest:
                raise FatalError("two answers of the chip differ")
            return data

    def md5(self, offset: int, size_bytes: int) -> str:
        """The MD5 of a region, computed by the stub loader."""
        with _lost_link():
            return str(self._esp.flash_md5sum(offset, size_bytes))

    def erase(self, offset: int, size_bytes: int) -> None:
        """Erase whole sectors, by SPI user commands as in `program`.

        The stub's own command would erase another place where its address was changed on the
        wire.
        """
        if offset % SECTOR_BYTES or size_bytes % SECTOR_BYTES:
            raise ValueError(f"erase of {size_bytes:#x} bytes at {offset:#x}")
        with _lost_link():
            for at in range(offset, offset + size_bytes, SECTOR_BYTES):
                self._spi_change(_SECTOR_ERASE, at)

    def program(self, offset: int, data: bytes) -> None:
        """Program one page without an erase, by SPI user commands through registers.

        The stub's own write commands always erase. Write enable precedes every program, and
        nothing crosses a page: silicon wraps inside it (esp32.md, "Talking to the chip").
        """
        if not data or offset % PAGE_BYTES + len(data) > PAGE_BYTES:
            raise ValueError(f"program of {len(data)} bytes at {offset:#x}")
        with _lost_link():
            for at in range(0, len(data), MAX_SPI_BYTES):
                self._spi_change(_PAGE_PROGRAM, offset + at, data[at : at + MAX_SPI_BYTES])

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

    def _spi_change(self, opcode: int, address: int, data: bytes = b"") -> None:
        """One flash command that changes something: write enable, the command, and its end."""
        esp = self._esp
        base = esp.SPI_REG_BASE
        cmd, addr = base, base + 0x04
        usr, usr1 = base + esp.SPI_USR_OFFS, base + esp.SPI_USR1_OFFS
        usr2, w0 = base + esp.SPI_USR2_OFFS, base + esp.SPI_W0_OFFS
        old_usr, old_usr2 = esp.read_reg(usr), esp.read_reg(usr2)
        padded = data + b"\xff" * (-len(data) % 4)
        words = struct.unpack(f"<{len(padded) // 4}I", padded)
        where = [(usr1, 23 << 26), (addr, address << 8 if esp.SPI_ADDR_REG_MSB else address)]
        what = [(w0 + 4 * i, word) for i, word in enumerate(words)]
        if data:
            where.append((base + esp.SPI_MOSI_DLEN_OFFS, len(data) * 8 - 1))
        self._write_regs([*where, *what])
        # Register writes carry no checksum, and a wrong address would change another place:
        # everything is looked at before the command starts.
        self._require_regs(where if len(data) > CHECKED_BYTES else [*where, *what])
        self._write_regs([(usr, _USR_COMMAND), (usr2, _OPCODE_BITS | _WREN), (cmd, _CMD_USR)])
        self._wait_spi(cmd)
        go = [
            (usr, _USR_COMMAND | _USR_ADDR | (_USR_MOSI if data else 0)),
            (usr2, _OPCODE_BITS | opcode),
        ]
        self._write_regs(go)
        self._require_regs(go)
        self._write_regs([(cmd, _CMD_USR)])
        self._wait_spi(cmd)
        self._wait_flash()
        self._write_regs([(usr, old_usr), (usr2, old_usr2)])

    def _wait_flash(self) -> None:
        """Until the flash chip's status says that it is done."""
        esp = self._esp
        base = esp.SPI_REG_BASE
        w0 = base + esp.SPI_W0_OFFS
        ask = [
            (base + esp.SPI_USR_OFFS, _USR_COMMAND | _USR_MISO),
            (base + esp.SPI_USR2_OFFS, _OPCODE_BITS | _RDSR),
            (base + esp.SPI_MISO_DLEN_OFFS, 7),
            (w0, 0),
            (base, _CMD_USR),
        ]
        limit_s = time.monotonic() + _BUSY_LIMIT_S
        while True:
            self._write_regs(ask)
            self._wait_spi(base)
            if not esp.read_reg(w0) & _WIP:
                return
            if time.monotonic() > limit_s:
                raise FatalError("the flash chip stays busy")

    def _require_regs(self, values: Sequence[tuple[int, int]]) -> None:
        for address, value in values:
            if self._esp.read_reg(address) != value:
                raise FatalError("a register of the chip did not take its value")

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


def _twice(read: Callable[[], Read]) -> Read:
    """What `read` says two times alike: registers come without a checksum, and a byte changed on
    the wire must not make another board, or an encrypted one, of this one."""
    first = read()
    if read() != first:
        raise FatalError("the chip's answers differ")
    return first


def _change_baud(esp: Any, baud: int) -> None:
    try:
        esp.change_baud(baud)
    except (ValueError, NotImplementedError) as error:  # pyserial's, where the port cannot
        raise FatalError(f"the port cannot be set to {baud} baud") from error


def _prove(esp: Any) -> None:
    """A few exchanges at the new speed; raises FatalError where it does not hold."""
    for _ in range(3):
        first = esp.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR, timeout=PROOF_TIMEOUT_S)
        again = esp.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR, timeout=PROOF_TIMEOUT_S)
        if first != again:
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
