# SPDX-License-Identifier: GPL-3.0-or-later
"""The link to one chip: download mode, the stub loader, and its flash, through esptool.

The only place that talks to a chip. Blocking; one `EspLink` per thread. The port is opened
elsewhere and passed in, so that it is closed whatever happens here (a failed detection leaves
it open: esp32.md, "Talking to the chip").
"""

from __future__ import annotations

import contextlib
import struct
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import and_
from typing import TYPE_CHECKING, Any

from ota_service.errors import OtaError
from ota_service.formats.flashops import PAGE_BYTES, SECTOR_BYTES
from ota_service.link import esptool_setup
from ota_service.link.attachment import GONE, attachment
from ota_service.link.chip import BAD_FLASH_IDS, ChipInfo
from ota_service.link.flash import Protection
from ota_service.link.identify import KNOWN, chip_info, detect, read_mac
from ota_service.link.ports import is_socket, no_lines
from ota_service.link.registers import SYNC, SYNC_DATA, RefusedError, await_answer, frame
from ota_service.link.serial_port import ROM_BAUD, close_port
from ota_service.link.sparse import Region, Seen, digest, read_regions
from ota_service.link.spi import (
    MAX_SPI_BYTES,
    PAGE_PROGRAM,
    READ_ID,
    READ_STATUS,
    RESET,
    RESET_ENABLE,
    SECTOR_ERASE,
    SpiBus,
)
from ota_service.link.start_stub import change_baud, start_stub
from ota_service.link.stream import BLOCK_COMMAND

import esptool.cmds as cmds  # isort: skip  (after esptool_setup)
from esptool.loader import DEFAULT_TIMEOUT, WRITE_BLOCK_ATTEMPTS, ESPLoader  # isort: skip
from esptool.util import FatalError  # isort: skip

if TYPE_CHECKING:
    from serial import SerialBase

    from ota_service.link.flash import Progress
    from ota_service.link.stream import SlotStream

BAUD_LADDER = (2_000_000, 1_500_000, 921_600, 460_800, 230_400, ROM_BAUD)
_ERRORS = (FatalError, *GONE, struct.error, StopIteration)


def bauds_to_try(highest: int) -> list[int]:
    """The speeds to try, fastest first: `highest` itself, then the usual ones below it."""
    return [highest, *[baud for baud in BAUD_LADDER if baud < highest]]


def looks_like_speed(error: OtaError) -> bool:
    """Whether a slower line may help: not where its port went away, nor a chip that was silent from
    the first word on, which is at the ROM's speed."""
    if error.code not in ("link-lost", "verify-failed"):
        return False
    cause = error.__cause__
    while cause is not None and not isinstance(cause, (OSError, termios.error)):
        cause = cause.__cause__ or cause.__context__
    return cause is None


PROVEN_BYTES = 65_536
"""A transfer of this size without a repeated block, whose digest agrees, proves a line."""

XMC_VENDOR_ID = 0x20
"""Its chips may need esptool's start-up sequence (esptool 5.6.0, `attach_flash`)."""

STARTS = 3
"""How often the stub loader is sent to a chip that answered: once fast, if at all; then at the
ROM's speed. Each of its blocks has a checksum, and one damaged byte ends it."""


LEAVE_WITHIN_S = 5.0
"""How long a chip's own USB port is waited for that went away in download mode: hubs and hosts were
seen to take so long, and the process has 9 s for its end."""
ASKED_TIMEOUT_S = 1.0
ASKED_POLL_S = 0.05
SYNC_ANSWER = b"\xc0\x01" + bytes((SYNC,))
"""How each answer to it begins, the ROM's and the stub loader's alike."""


Identified = Callable[[str], object]
"""Called with the MAC of the chip that answered; raises to go no further."""


class EspLink:
    """A chip in download mode with the stub loader running; implements `Flash`.

    baud: the speed in use. chip: what it is, by its fuses as they were at the last connection.
    running: it was restarted into its firmware. starts_fast: whether its ROM may be asked for a
    higher speed; once that did not work, it is not tried again.
    """

    def __init__(
        self, esp: Any, spi: SpiBus, port: SerialBase, chip: ChipInfo, baud: int, starts_fast: bool
    ) -> None:
        self._esp = esp
        self._port = port
        self._spi = spi
        self._seen = Seen()
        self._expected: dict[tuple[int, int], bytes] = {}
        self._awaited: tuple[int, int, str] | None = None
        self._proven = False
        self.chip = chip
        self.baud = baud
        self.starts_fast = starts_fast
        self.running = False

    @classmethod
    def connect(
        cls, port: SerialBase, *, baud: int, attempts: int = 3,
        identified: Identified | None = None, fast: bool = True,
    ) -> EspLink:  # fmt: skip
        """Reset the chip into download mode, start the stub loader, raise the speed.

        port: an open port. baud: the highest speed to use; lower ones are tried by themselves.
        identified: called with the MAC before anything but fuses is touched; may raise. fast:
        False: the stub loader is sent at the ROM's speed.
        Raises OtaError `no-answer`; `secure-download` where the chip answers but lets nobody
        read its flash. The board is reset then, as far as the port allows.
        """
        esptool_setup.install()
        if attachment(port).native or is_socket(str(port.port)):
            baud = ROM_BAUD  # USB has none, and a socket cannot tell the UART behind it of another
        try:
            return cls._connected(port, baud, attempts, identified, fast)
        except BaseException:
            leave_download_mode(port)
            raise

    @classmethod
    def _connected(
        cls, port: SerialBase, baud: int, attempts: int, identified: Identified | None, fast: bool
    ) -> EspLink:
        for speed in bauds_to_try(baud):
            esp, mac, fast = _started(port, speed, attempts, identified, fast)
            try:
                if port.baudrate != speed:
                    change_baud(esp, speed)
                spi = _attach_flash(esp, mac)
                chip = chip_info(esp, mac)
                if chip.flash_bytes is not None:
                    esp.flash_set_parameters(chip.flash_bytes)
            except _ERRORS as error:
                if speed == ROM_BAUD:
                    raise OtaError("link-lost", _lost(error)) from error
                continue  # the port or the board does not hold this speed
            return cls(esp, spi, port, chip, speed, fast)
        raise OtaError("no-answer", "The chip answers, but no speed of the port can be used.")

    # --- Flash

    def read(self, offset: int, size_bytes: int) -> bytes:
        """The bytes at `offset`; their digest is checked on the way.

        It is asked for once more by another command: requests carry no checksum, and one whose
        address was changed on the wire is answered from there, with that place's digest.
        """
        self.chip.require_reach(offset + size_bytes)
        known = self._seen.get(offset, size_bytes)
        if known is not None:
            return known
        with _lost_link():
            data = self._peek(offset, size_bytes)
            if self._esp.flash_md5sum(offset, size_bytes) != digest(data):
                raise FatalError("two answers of the chip differ")
        self._seen.put(offset, data)
        return data

    def prefetch(self, regions: Sequence[Region]) -> None:
        """Read regions that are mostly blank by fewer bytes, so that `read` has them at hand.

        The same protection as in `read`: a digest that another command computes.
        """
        self.chip.require_reach(max((one.end for one in regions), default=0))
        unknown = [one for one in regions if self._seen.get(one.offset, one.size_bytes) is None]
        with _lost_link():
            found = read_regions(unknown, self._peek, self._esp.flash_md5sum)
        for offset, data in found:
            self._seen.put(offset, data)

    def _peek(self, offset: int, size_bytes: int) -> bytes:
        """Bytes whose own digest is right, but which may be those of another place."""
        return bytes(self._esp.read_flash(offset, size_bytes))

    def md5(self, offset: int, size_bytes: int) -> str:
        """The MD5 of a region, computed by the stub loader."""
        self.chip.require_reach(offset + size_bytes)
        with _lost_link():
            found = str(self._esp.flash_md5sum(offset, size_bytes))
        if self._awaited is not None and self._awaited[:2] == (offset, size_bytes):
            self._proven = self._awaited[2] == found
        expected = self._expected.pop((offset, size_bytes), None)
        if expected is not None and digest(expected) == found:
            self._seen.put(offset, expected)
        return found

    def erase(self, offset: int, size_bytes: int) -> None:
        """Erase whole sectors, by SPI user commands as in `program`.

        The stub's own command would erase another place where its address was changed on the
        wire.
        """
        if offset % SECTOR_BYTES or size_bytes % SECTOR_BYTES:
            raise ValueError(f"erase of {size_bytes:#x} bytes at {offset:#x}")
        self._changes(offset, b"\xff" * size_bytes)
        with _lost_link():
            for at in range(offset, offset + size_bytes, SECTOR_BYTES):
                self._spi.change(SECTOR_ERASE, at, b"", self._proven)

    def program(self, offset: int, data: bytes) -> None:
        """Program one page without an erase, by SPI user commands through registers.

        The stub's own write commands always erase. Write enable precedes every program, and
        nothing crosses a page: silicon wraps inside it (esp32.md, "Talking to the chip").
        May return while the flash is still busy with it: ask for the digest next.
        """
        if not data or offset % PAGE_BYTES + len(data) > PAGE_BYTES:
            raise ValueError(f"program of {len(data)} bytes at {offset:#x}")
        before = self._seen.get(offset, len(data))
        blank = before is not None and not before.strip(b"\xff")
        after = None if before is None else bytes(map(and_, before, data))
        self._changes(offset, after, len(data))
        with _lost_link():
            if self._proven and len(data) > MAX_SPI_BYTES:
                self._spi.program_page(offset, data)
                return
            for at in range(0, len(data), MAX_SPI_BYTES):
                part = data[at : at + MAX_SPI_BYTES]
                last = at + len(part) == len(data)
                self._spi.change(
                    PAGE_PROGRAM, offset + at, part, self._proven, blank=blank, last=last
                )

    def _changes(self, offset: int, expected: bytes | None, size_bytes: int = 0) -> None:
        """A place is about to be changed; what it should hold then, where that is known."""
        size_bytes = len(expected) if expected is not None else size_bytes
        self.chip.require_reach(offset + size_bytes)
        self._seen.drop(offset, size_bytes)
        if expected is not None:
            self._expected[offset, len(expected)] = expected

    def write_stream(self, offset: int, stream: SlotStream, progress: Progress) -> None:
        """Erase the slot's sectors and write the stream; returns when it is in flash."""
        esp = self._esp
        self._changes(offset, None, -(-stream.size_bytes // SECTOR_BYTES) * SECTOR_BYTES)
        self._proven, self._awaited = False, None
        with _lost_link():
            esp.flash_defl_begin(stream.size_bytes, stream.compressed_bytes, offset)
        # The stub loader acknowledges a block before it inflates and writes it, so what a block
        # takes is waited for with the next one.
        timeout_s = DEFAULT_TIMEOUT
        done = repeats = 0
        for block in stream.blocks:
            progress(done)  # between two blocks the stub loader is in sync: the place to stop at
            with _lost_link():
                repeats += _send_block(esp, block.packet, timeout_s)
            done += block.inflated_bytes
            timeout_s = cmds._get_flash_defl_block_timeout(esp, block.inflated_bytes)
        with _lost_link():
            # Not answered before the last block is in flash: the barrier before any MD5.
            esp.read_reg(ESPLoader.CHIP_DETECT_MAGIC_REG_ADDR, timeout=timeout_s)
        if not repeats and stream.compressed_bytes >= PROVEN_BYTES:
            body = stream.size_bytes - PAGE_BYTES
            self._awaited = (offset + PAGE_BYTES, body, stream.body_md5)
        progress(stream.size_bytes)

    # --- the chip

    def protection(self) -> Protection:
        """What the flash chip's block-protect bits cover."""
        with _lost_link():
            status = self._spi.ask(READ_STATUS, 1)
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

        self.running = False  # from the first reset on, also where it does not answer then
        again = EspLink.connect(self._port, baud=self.baud, identified=same, fast=self.starts_fast)
        self._esp, self._spi, self.chip = again._esp, again._spi, again.chip
        self.baud, self.starts_fast = again.baud, again.starts_fast
        self._forget()

    def restart(self) -> None:
        """Leave download mode: reset the chip into its firmware, at the log's speed.

        The stub loader is put back to the ROM's speed before: where the reset reaches nothing,
        the next session can talk to it.
        """
        self._forget()
        at = attachment(self._port)
        with _lost_link():
            try:
                if self._port.baudrate != ROM_BAUD:
                    self._slow_down()
                self._port.baudrate = ROM_BAUD
                self._port.reset_input_buffer()
                try:
                    at.restart(self._port, self._esp)
                except (FatalError, struct.error, StopIteration):
                    at.restart(self._port)  # on USB-OTG esptool asks the chip first
            except GONE:
                self.running = leave_download_mode(self._port)
                raise
        self.running = True

    def _slow_down(self) -> None:
        esp = self._esp
        speeds = struct.pack("<II", ROM_BAUD, self.baud)
        with contextlib.suppress(FatalError, struct.error, StopIteration):  # it is reset anyway
            esp.command(esp.ESP_CMDS["CHANGE_BAUDRATE"], speeds, timeout=ASKED_TIMEOUT_S)

    def in_download(self) -> tuple[bool, bytes]:
        """Whether a loader still answers after a restart, whose reset has reached nothing then; and
        what came instead of an answer, which an app has begun to say."""
        return _asked(self._port)

    def stay(self) -> None:
        """Go on with the stub loader, which a restart did not reach."""
        with _lost_link():
            self._esp.flush_input()
            if self.baud != ROM_BAUD:
                change_baud(self._esp, self.baud)
        self.running = False

    def _forget(self) -> None:
        """The firmware may change the flash now, and the line may be another one afterwards."""
        self._seen.clear()
        self._expected.clear()
        self._awaited, self._proven = None, False


def _send_block(esp: Any, packet: bytes, timeout_s: float) -> int:
    """Send a block that is framed already; returns how often it had to be repeated."""
    port = esp._port
    if port.timeout != timeout_s:
        port.timeout = timeout_s
    for repeats in range(WRITE_BLOCK_ATTEMPTS):
        try:
            port.write(packet)
            await_answer(esp, BLOCK_COMMAND)
            return repeats
        except FatalError as error:
            if repeats + 1 == WRITE_BLOCK_ATTEMPTS:
                raise
            if isinstance(error, RefusedError):
                continue
            # Nothing came of it: a delimiter was lost, and the stub loader now takes the end of a
            # frame for the beginning of one. One more puts that right.
            esp.flush_input()
            port.write(b"\xc0")
    raise AssertionError("not reached")


def _started(
    port: SerialBase, baud: int, attempts: int, identified: Identified | None, fast: bool
) -> tuple[Any, str, bool]:
    """The chip's stub loader, its MAC, and whether it may be sent fast the next time."""
    for again in reversed(range(STARTS)):
        try:
            port.baudrate = ROM_BAUD
            # esptool waits for the stub loader's first word by the port's own timeout.
            port.timeout = DEFAULT_TIMEOUT
            esp = detect(port, ROM_BAUD, attempts)
        except _ERRORS as error:
            raise _not_connected(error, port) from error
        try:
            if esp.secure_download_mode:
                raise OtaError("secure-download")
            mac = read_mac(esp)
            if identified is not None:
                identified(mac)
            return start_stub(esp, baud, fast=fast), mac, fast
        except _ERRORS as error:
            if not again:
                raise _not_connected(error, port) from error
            fast = False
    raise AssertionError("not reached")


def _asked(port: SerialBase) -> tuple[bool, bytes]:
    """Whether a loader answers; what came instead.

    The question is one frame without a byte that a console would take for a command.
    """
    said, answered = b"", False
    with contextlib.suppress(*GONE):  # whoever reads on is told once more
        port.timeout = ASKED_POLL_S
        port.write(frame(SYNC, SYNC_DATA))
        until_s = time.monotonic() + ASKED_TIMEOUT_S
        while time.monotonic() < until_s:
            data = port.read(max(1, min(port.in_waiting, 4096)))
            said += data
            answered = answered or SYNC_ANSWER in said
            if (answered and not data) or (not answered and b"\n" in said):
                break  # behind the last of a loader's answers; a line of somebody else's
    return answered, b"" if answered else said


def leave_download_mode(port: SerialBase) -> bool:
    """Reset whatever is behind a port by its lines alone, as far as the port allows.

    For a chip that could not be talked to, or was not the one that is meant: it may wait in
    download mode, and would go on to do so. One that a reset takes away is waited for a while, also
    where the process ends. Returns whether it was reset.
    """
    with contextlib.suppress(Exception):
        at = attachment(port)
        if _there(port) and at.restart(port):
            return True
        went_with_it = port.is_open
        at.reopen(port, None, within_s=LEAVE_WITHIN_S if at.may_return else 0.0)
        if not went_with_it or _asked(port)[0]:
            at.restart(port)
        return True
    return False


def _there(port: SerialBase) -> bool:
    """Whether an open port still has its device; it is closed where it has not."""
    try:
        _ = port.in_waiting
    except GONE:
        close_port(port)
    return bool(port.is_open)


@contextmanager
def _lost_link() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise OtaError("link-lost", _lost(error)) from error


def _lost(error: BaseException) -> str:
    return f"The connection to the board was lost: {_first_line(error)}."


def _not_connected(error: BaseException, port: SerialBase) -> OtaError:
    """Of a port that fails the link is lost, whatever may be behind it."""
    if isinstance(error, GONE):
        return OtaError("link-lost", _lost(error))
    return OtaError(
        "no-answer",
        f"No ESP32 answered on the port: {_first_line(error)}.",
        remedy=no_lines(str(port.name)) if attachment(port).by is None else None,
    )


def _first_line(error: BaseException) -> str:
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = told.strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


def _attach_flash(esp: Any, mac: str) -> SpiBus:
    """Reset the flash chip and read its id; esptool's many exchanges only where that is odd."""
    bus = SpiBus(esp)
    known = KNOWN.get(mac)
    flash_id = bus.ask(
        READ_ID,
        3,
        after=(RESET_ENABLE, RESET),
        then_us=1000,
        expected=known.flash_id if known is not None else None,
    )
    if flash_id in BAD_FLASH_IDS or flash_id & 0xFF == XMC_VENDOR_ID:
        cmds.attach_flash(esp)
    else:
        esp.cache["flash_id"] = flash_id
    return bus
