# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person is told: each row is an input, the words that must be in the error, and those that
must not.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest

from ota_service.building.elf import app_image
from ota_service.errors import OtaError
from ota_service.formats.bootloader import parse_bootloader
from ota_service.formats.image import parse_app_image
from ota_service.formats.merged import parse_merged
from ota_service.formats.partitions import SUBTYPE_OTA_0, TYPE_APP, Partition
from ota_service.link.chip import ChipInfo
from ota_service.link.serial_port import open_port
from ota_service.module.config import parse_config
from ota_service.module.verbs import VerbError, parse_command
from ota_service.update.flash_plan import check_merged
from ota_service.update.plan import _that_fits
from tests.formats import images
from tests.support.elf import app_elf

Call = Callable[[], object]
CHIP = ChipInfo("ESP32-S3", 9, "24:0a:c4:00:00:01", 1, 8 << 20)


@dataclass(frozen=True)
class Row:
    """What is given, and what the error says of it, its remedy included; never: "absent"."""

    call: Call
    code: str
    words: str
    absent: str = "report this"


def zipped() -> bytes:
    """A zip with an app in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("app.bin", images.app(size=64))
    return file.getvalue()


def arduino(magic: bytes) -> bytes:
    """As `bin2ota.py` makes it."""
    rest = magic + bytes(8) + images.noise(3000, 1)
    return struct.pack("<II", len(rest), 0x12345678) + rest


def ram_program(size: int = 9000, chip_id: int = 0) -> bytes:
    """An app that is built to run from memory, without a descriptor where an app has it."""
    ram = images.ADDRESSES[chip_id][2]
    return images.Builder([(ram, images.noise(size, 3))], ram, chip_id).build()


def stub() -> bytes:
    """A header with an empty segment: whole, and 48 bytes long."""
    made = images.Builder([(0x40080400, b"")], 0x40080400, 0, hash_appended=False).build()
    assert len(made) == 48
    return made


FILES: dict[str, tuple[bytes, str]] = {
    "HTML": (b"<!DOCTYPE html><html><body>Log in", "a web page: perhaps the server's login"),
    "HTML with a mark": (b"\xef\xbb\xbf  <html>", "a text file"),
    "gz": (gzip.compress(b"x" * 99), "a gzip archive: unpack it first"),
    "zip": (zipped(), "a zip archive"),
    "UF2": (b"UF2\n" + bytes(508), "a UF2 file"),
    "HEX": (b":020000040000FA\r\n:10000000", "an Intel HEX file"),
    "ELF": (app_elf(), "an ELF file: `esp32-ota image ota FILE`"),
    "Arduino's": (arduino(b"3PSE"), "an Arduino .ota file"),
    "Arduino's own board's": (arduino(b"\x70\x00\x41\x23"), "an Arduino .ota file"),
    "Matter's": (b"\x1e\xf1\xee\x1b" + bytes(60), "a Matter OTA file"),
    "Zigbee's": (b"\x1e\xf1\xee\x0b" + bytes(60), "a Zigbee OTA file"),
    "ESP8266": (bytes.fromhex("e9010200 00001040 00001040 10000000") + bytes(64), "the ESP8266"),
    "ESP8266, newer": (b"\xea\x04\x00\x01" + bytes(64), "the ESP8266"),
    "a partition table": (b"\xaa\x50" + bytes(30), "a partition table"),
    "nothing": (b"", "empty"),
    "erased": (b"\xff" * 64, "erased flash"),
}  # fmt: skip
APP = parse_app_image(images.app())
SLOTS = tuple(
    Partition(f"ota_{n}", TYPE_APP, SUBTYPE_OTA_0 + n, 0x10000 * (n + 1), size, 0)
    for n, size in enumerate((1 << 20, 4096))
)
LISTED = {"url": "http://h/a.bin", "version": "1"}


def attributes(**changes: Any) -> Call:
    """A configuration with these attributes."""
    return lambda: parse_config({**LISTED, **changes})


ROWS: dict[str, Row] = {
    **{
        f"{name} as an app": Row(partial(parse_app_image, data), "not-an-image", words)
        for name, (data, words) in FILES.items()
    },
    **{
        f"{name} as a whole flash": Row(partial(check_merged, data), "not-an-image", words)
        for name, (data, words) in FILES.items()
    },
    "an app as a whole flash": Row(
        lambda: parse_merged(images.app(size=64)), "not-an-image", "an App Image: an update writes"
    ),
    "a bootloader as a whole flash": Row(
        lambda: parse_merged(images.bootloader()), "not-an-image", "without a partition table"
    ),
    "a bootloader as an app": Row(
        lambda: parse_app_image(images.bootloader(new=False)), "bootloader-image", "a bootloader"
    ),
    "a program for memory as an app": Row(
        lambda: parse_app_image(ram_program()), "not-an-image", "from memory alone", "bootloader"
    ),
    "a program for memory as a bootloader": Row(
        lambda: parse_bootloader(ram_program()), "not-an-image", "another program"
    ),
    "a small one of a chip of another kind": Row(
        lambda: parse_app_image(ram_program(64, 13)), "not-an-image", "from memory", "bootloader"
    ),
    "a stub of 48 bytes as an app": Row(
        lambda: parse_app_image(stub()), "not-an-image", "from memory alone", "bootloader"
    ),
    "an app without descriptor": Row(
        lambda: parse_app_image(images.app_builder(about=images.noise(256, 5)).build()),
        "no-app-descriptor",
        "built before ESP-IDF 3.3, or not by ESP-IDF",
    ),
    "a stub of 48 bytes as a bootloader": Row(
        lambda: parse_bootloader(stub()), "not-an-image", "another program"
    ),
    "an ELF for another chip": Row(
        lambda: app_image(app_elf("esp32"), chip="esp32s3"),
        "wrong-chip",
        "not for the esp32s3: it is a program for Xtensa that fits esp32",
    ),
    "an ELF for another machine": Row(
        lambda: app_image(app_elf("esp32c3"), chip="esp32"),
        "wrong-chip",
        "program for RISC-V",
    ),
    "a version of one": Row(attributes(version=1.0), "config-invalid", '"1.0" or "1"'),
    "a version of 1.1": Row(
        attributes(version=1.1), "config-invalid", 'quote it as it was written, "1.1"'
    ),
    "a version of a day": Row(attributes(version=20260101.0), "config-invalid", '"20260101"', "e+"),
    "firmware_url": Row(
        attributes(firmware_url="x"), "config-invalid", "did you mean url?", "confirm"
    ),
    "tls_pin": Row(attributes(zzz=1), "config-invalid", "there are url, version", "did you mean"),
    "timeout": Row(attributes(confirm_timeout=1), "config-invalid", "mean confirm_timeout_s?"),
    "serial_port": Row(
        attributes(boards=[{"name": "a", "serial_port": "/dev/x"}]), "config-invalid", "mean port?"
    ),
    "rfc2217 refuses": Row(
        lambda: open_port("rfc2217://127.0.0.1:1"),
        "no-answer",
        "the network and its firewalls",
        "BOOT",
    ),
    "socket refuses": Row(
        lambda: open_port("socket://127.0.0.1:1"),
        "no-answer",
        "the network and its firewalls",
        "BOOT",
    ),
    "no flash answers": Row(
        lambda: replace(CHIP, flash_bytes=None, flash_id=0xFFFFFF).flash_problem,
        "flash-size",
        "does not answer: its id reads ff ff ff",
    ),
    "a flash that is not known": Row(
        lambda: replace(CHIP, flash_bytes=None, flash_id=0x1240C8).flash_problem,
        "flash-size",
        "its id is c8 40 12",
        "does not answer",
    ),
    "slots of other sizes": Row(
        lambda: _that_fits((SLOTS[1],), APP, SLOTS[0]),
        "image-too-large",
        "fewer: ota_1 has 4096. ota_0 has 1048576, but it runs and is never written.",
    ),
    "no memory": Row(lambda: OtaError.unforeseen(MemoryError()), "no-memory", "no memory left"),
    "no memory, by the system": Row(
        lambda: OtaError.unforeseen(OSError(12, "Cannot allocate")), "no-memory", "no memory left"
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_words(name: str) -> None:
    """What is so, in the words of who gave it."""
    row = ROWS[name]
    try:
        error = row.call()
    except OtaError as raised:
        error = raised
    assert isinstance(error, OtaError)
    told = f"{error.message} {error.remedy}"
    assert error.code == row.code, told
    assert row.words in told
    assert row.absent not in told


@pytest.mark.parametrize(
    ("command", "words", "absent"),
    [
        ({"command": "update", "wait": 1}, "did you mean wait_s?", "confirm"),
        ({"command": "update", "xyzzy": 1}, "no argument xyzzy. It takes boards", "did you mean"),
    ],
)
def test_an_argument_is_hinted_at_where_it_is_near(
    command: dict[str, Any], words: str, absent: str
) -> None:
    """Not where it is like nothing."""
    with pytest.raises(VerbError) as caught:
        parse_command(command)
    assert words in str(caught.value)
    assert absent not in str(caught.value).partition("It takes")[0]


@pytest.mark.parametrize(
    ("blocks", "at", "unlimited", "words"),
    [
        ((0, 0), 103, False, ""),
        ((0, 0xFFFF), 103, False, ""),
        ((100, 199), 103, False, ""),
        ((0, 99), 103, False, "revision v0.0 to v0.99 of the chip's eFuse blocks"),
        ((0, 99), 103, True, ""),
        ((104, 199), 103, False, "revision v1.4 or later of the chip's eFuse blocks"),
        ((104, 199), 103, True, "revision v1.4 or later"),
        ((104, 199), None, False, ""),
    ],
)
def test_the_fuse_blocks_revision_is_checked_as_the_bootloader_does(
    blocks: tuple[int, int], at: int | None, unlimited: bool, words: str
) -> None:
    """bootloader_common_check_efuse_blk_validity; a chip that has none is not asked."""
    about = bytearray(images.descriptor())
    struct.pack_into("<HH", about, 176, *blocks)
    app = parse_app_image(images.app_builder(chip_id=9, about=bytes(about)).build()).descriptor
    chip = replace(CHIP, block_revision=at, any_block_major=unlimited)
    if not words:
        chip.require_blocks(app)
        return
    with pytest.raises(OtaError) as caught:
        chip.require_blocks(app)
    assert caught.value.code == "chip-revision"
    assert words in caught.value.message
