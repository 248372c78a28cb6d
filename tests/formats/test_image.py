# SPDX-License-Identifier: GPL-3.0-or-later
"""App Images: accepted where esptool accepts them, refused with the code that fits otherwise."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota_service.errors import OtaError
from ota_service.formats.chips import CHIP_BY_ID
from ota_service.formats.image import AppImage, parse_app_image, parse_header
from ota_service.formats.merged import find_partition_table, parse_merged
from tests.formats import images, tables
from tests.formats.outcomes import outcome
from tests.support.signing import key, sign

IMAGE_CODES = {
    "not-an-image",
    "image-corrupt",
    "merged-binary",
    "bootloader-image",
    "no-app-descriptor",
}
APP = images.app()
TABLE = tables.table_bytes(tables.AS_SHIPPED)


def refusal(data: bytes, *, trailing: bool = False) -> OtaError:
    """The error that parsing `data` raises."""
    with pytest.raises(OtaError) as caught:
        parse_app_image(data, trailing=trailing)
    return caught.value


def test_chips_are_esptools() -> None:
    """Names, mapped ranges and bootloader offsets are those of the installed esptool."""
    from esptool.bin_image import LoadFirmwareImage  # noqa: F401  (its import sets up targets)
    from esptool.targets import CHIP_DEFS

    known = {chip.IMAGE_CHIP_ID: chip for chip in CHIP_DEFS.values() if chip.CHIP_NAME != "ESP8266"}
    assert known.keys() == CHIP_BY_ID.keys()
    for chip_id, rom in known.items():
        chip = CHIP_BY_ID[chip_id]
        assert chip.name == rom.CHIP_NAME
        assert chip.bootloader_offset == rom.BOOTLOADER_FLASH_OFFSET
        for start, end in (
            (rom.IROM_MAP_START, rom.IROM_MAP_END),
            (rom.DROM_MAP_START, rom.DROM_MAP_END),
        ):
            assert chip.maps(start)
            assert chip.maps(end - 1)
        low = min(rom.IROM_MAP_START, rom.DROM_MAP_START)
        high = max(rom.IROM_MAP_END, rom.DROM_MAP_END)
        assert not chip.maps(low - 1)
        assert not chip.maps(high)


@pytest.mark.parametrize("chip_id", images.ADDRESSES)
def test_what_esptool_accepts_is_read_the_same(chip_id: int, tmp_path: Path) -> None:
    """esptool's own parser finds checksum, digest, segments and entry of the same image right."""
    from esptool.bin_image import LoadFirmwareImage

    data = images.app(chip_id)
    file = tmp_path / "app.bin"
    file.write_bytes(data)
    name = CHIP_BY_ID[chip_id].name.lower().replace("-", "")
    judge = LoadFirmwareImage(name, str(file))
    assert judge.checksum == judge.calculate_checksum()
    assert judge.stored_digest == judge.calc_digest
    ours = parse_app_image(data)
    assert ours.chip == CHIP_BY_ID[chip_id].name
    assert ours.entry == judge.entrypoint
    assert [(s.load_address, s.file_offset, s.size_bytes) for s in ours.segments] == [
        (s.addr, s.file_offs + 8, len(s.data))
        for s in judge.segments  # it counts the header in
    ]
    assert ours.size_bytes == ours.total_bytes == len(data)
    assert ours.sha256 == hashlib.sha256(data).digest()
    assert not ours.signed


def test_what_an_image_says() -> None:
    """Descriptor and revisions are read from their places."""
    about = images.descriptor(b"pump\x07\x1b[31m", b"v9\xff", secure_version=4)
    builder = replace(images.app_builder(about=about), min_rev_full=301, max_rev_full=399)
    image = parse_app_image(builder.build())
    assert image.descriptor == parse_header(builder.build()[:288])
    assert image.descriptor.project == "pump[31m"
    assert image.descriptor.version == "v9\ufffd"
    assert image.descriptor.secure_version == 4
    assert image.descriptor.idf_version == "v5.4.1"
    assert image.descriptor.elf_sha256 == bytes(range(32))
    assert [image.runs_on_revision(rev) for rev in (300, 301, 399, 400)] == [
        False,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("chip_id", "old", "full", "expected"),
    [(0, 3, 0, 300), (0, 3, 300, 300), (0, 0, 0, 0), (5, 3, 0, 3), (5, 3, 3, 3), (9, 1, 0, 100)],
)
def test_least_revision_of_old_images(chip_id: int, old: int, full: int, expected: int) -> None:
    """Images from before ESP-IDF v5.0 say a major revision only; on the ESP32-C3 the minor one."""
    builder = replace(images.app_builder(chip_id), min_rev=old, min_rev_full=full)
    assert parse_app_image(builder.build()).min_revision == expected


@pytest.mark.parametrize("limit", [0, 0xFFFF])
def test_no_highest_revision(limit: int) -> None:
    """Both ways of saying nothing mean no limit."""
    image = parse_app_image(replace(images.app_builder(), max_rev_full=limit).build())
    assert image.runs_on_revision(999)


def test_an_image_without_a_hash() -> None:
    """The hash is optional; the checksum is not."""
    data = replace(images.app_builder(), hash_appended=False).build()
    image = parse_app_image(data)
    assert not image.hash_appended
    assert image.size_bytes == len(data)
    assert refusal(data[:-1] + bytes([data[-1] ^ 1])).code == "image-corrupt"


def test_any_value_of_the_flag_means_a_hash() -> None:
    """The bootloader asks whether it is zero; with the checksum alone a damage could pass."""
    data = images.app_builder().build()
    body = data[:23] + b"\2" + data[24:-32]
    assert parse_app_image(body + hashlib.sha256(body).digest()).hash_appended
    assert refusal(body + data[-32:]).code == "image-corrupt"


def test_an_unknown_chip_is_named() -> None:
    """A chip from the future gives its number, not an error: the board's check refuses it."""
    assert parse_app_image(replace(images.app_builder(), chip_id=777).build()).chip == "chip id 777"


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.bin", APP)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\xff" * 5000, "erased"),
        (b"\0" * 5000, "zeros"),
        (b"\x7fELF" + bytes(100), "ELF"),
        (_zip(), "zip"),
        (gzip.compress(APP), "gzip"),
        (b"\n<!DOCTYPE html><html><body>Please log in", "web page"),
        (b"<html>", "web page"),
        (TABLE, "partition table"),
        (b"UF2\n" + bytes(508), "UF2"),
        (b":020000040800F2\r\n:10000000", "Intel HEX"),
        (b'{"error": "not found"}', "JSON"),
        (b'{"format": 1, "images": {}}', "a manifest, which only a service's url may name"),
        ("404: größer nicht gefunden".encode(), "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS"),
        (b"\xea\x04\x02\x40" + bytes(100), "ESP8266"),
        (
            struct.pack("<BBBBIII", 0xE9, 3, 2, 0x40, 0x40100004, 0x40100000, 0x100) + bytes(0x400),
            "ESP8266",
        ),
        (b"\x12" + APP[1:], "0x12"),
    ],
)
def test_other_files_are_named(data: bytes, word: str) -> None:
    """A file that is no image at all is refused as such, and the message says what it is."""
    error = refusal(data)
    assert error.code == "not-an-image"
    assert word in error.message


@pytest.mark.parametrize(
    ("chip_id", "at"), [(0, 0x1000), (2, 0x1000), (5, 0), (9, 0), (13, 0), (18, 0x2000)]
)
@pytest.mark.parametrize("table_at", [0x8000, 0x9000, 0xA000, 0x10000])
@pytest.mark.parametrize("new", [True, False])
def test_merged_binaries(chip_id: int, at: int, table_at: int, new: bool) -> None:
    """A Merged Binary of every bootloader offset is told from an App Image, and its app is read."""
    csv = tables.AS_SHIPPED.replace("0x9000", "0x12000").replace("0xa000", "0x14000")
    csv = csv.replace("0xc000,0x14000", "0x16000,0xa000")
    table = tables.table_bytes(csv)
    good, bad = images.app(chip_id), images.app(chip_id)[:-1] + b"x"
    data = images.merged(
        images.bootloader(chip_id, new), table, {0x20000: good, 0x400000: bad}, at, table_at
    )
    assert refusal(data).code == "merged-binary"
    assert find_partition_table(data) == (at, table_at)
    whole = parse_merged(data)
    assert whole.chip == CHIP_BY_ID[chip_id].name
    (first, app), (second, error) = whole.apps
    assert (first.label, second.label) == ("ota_0", "ota_1")
    assert isinstance(app, AppImage)
    assert app.size_bytes == len(good)
    assert isinstance(error, OtaError)
    assert error.code == "image-corrupt"


def test_a_merged_binary_that_begins_at_its_bootloader() -> None:
    """Made for another flash offset it begins with 0xE9, and is still no App Image."""
    data = images.merged(images.bootloader(), TABLE, {0x20000: APP})[0x1000:]
    assert refusal(data).code == "merged-binary"
    assert find_partition_table(data) is None


def test_an_app_is_no_merged_binary() -> None:
    """An App Image whose data happens to look like a table at 0x8000 stays one."""
    builder = images.app_builder(5, size=0x10000)
    address, data = builder.segments[0]
    place = 0x8000 - 32
    builder.segments[0] = (address, data[:place] + TABLE + data[place + len(TABLE) :])
    whole = builder.build()
    assert whole[0x8000:0x8002] == b"\xaa\x50"
    assert find_partition_table(whole) is None
    assert parse_app_image(whole).chip == "ESP32-C3"
    assert outcome(parse_merged, whole).__class__ is OtaError


@pytest.mark.parametrize("chip_id", [0, 5, 13])
@pytest.mark.parametrize("new", [True, False])
def test_bootloaders(chip_id: int, new: bool) -> None:
    """A bootloader is told from an app, whether or not it has its own descriptor."""
    assert refusal(images.bootloader(chip_id, new)).code == "bootloader-image"


def test_an_image_without_descriptor() -> None:
    """A whole image with mapped segments and no app descriptor is no App Image."""
    builder = images.app_builder(about=images.noise(256, 5))
    assert refusal(builder.build()).code == "no-app-descriptor"
    short = images.app_builder()
    short.segments[0] = (short.segments[0][0], images.descriptor()[:128])
    assert refusal(short.build()).code == "no-app-descriptor"


@pytest.mark.parametrize("cut", [1, 20, 24, 31, 33, 288, 1000, 65536, -33, -32, -1])
def test_truncated_images(cut: int) -> None:
    """An image cut anywhere is damaged, in a file and in a slot."""
    for trailing in (False, True):
        assert refusal(APP[:cut], trailing=trailing).code == "image-corrupt"


def test_every_flipped_bit_is_found() -> None:
    """With an appended hash no single changed bit of the image passes."""
    data = bytearray(images.app(size=64))
    step = max(1, len(data) // 400)
    for place in [*range(0, 400), *range(400, len(data), step)]:
        data[place] ^= 1 << place % 8
        assert refusal(bytes(data)).code in IMAGE_CODES
        data[place] ^= 1 << place % 8
    assert parse_app_image(bytes(data))


def test_rules_of_the_bootloader() -> None:
    """Unaligned mapping, odd lengths, an entry outside, too many segments: all refused."""
    unmapped = replace(images.app_builder(), mapped=())
    assert "mapped" in refusal(unmapped.build()).message
    odd = images.app_builder()
    odd.segments[1] = (odd.segments[1][0], b"abc")
    assert "length" in refusal(odd.build()).message
    assert "entry" in refusal(replace(images.app_builder(), entry=0x3FF00000).build()).message
    assert "entry" in refusal(replace(images.app_builder(), entry=0x4).build()).message
    many = images.app_builder()
    many.segments += [(0x3FFC0000, b"1234")] * 16
    assert "segments" in refusal(many.build()).message
    assert "segments" in refusal(b"\xe9\0" + APP[2:]).message
    huge = APP[:28] + struct.pack("<I", 0x1000000) + APP[32:]
    assert "length" in refusal(huge).message


@pytest.mark.parametrize(
    ("said", "page", "passes"), [(0, 0x2000, True), (14, 0x4000, True), (16, 0x2000, False)]
)
def test_chips_with_smaller_pages(said: int, page: int, passes: bool) -> None:
    """The ESP32-C6 maps pages of 8 KiB and up: the descriptor says which, if it is new enough."""
    builder = replace(
        images.app_builder(13, size=0x6000, about=images.descriptor(page=said)), page_bytes=page
    )
    result = outcome(parse_app_image, builder.build())
    assert isinstance(result, AppImage) is passes


@pytest.mark.parametrize("rest", [b"", b"\xff" * 100, b"\0" * 5000, b"\xff\0\xff"])
def test_padding_behind_a_file(rest: bytes) -> None:
    """FF and 00 behind the image are padding and count neither as size nor in the digest."""
    image = parse_app_image(APP + rest)
    assert image.total_bytes == len(APP)
    assert image.sha256 == hashlib.sha256(APP).digest()


def test_other_bytes_behind() -> None:
    """Behind a file's image nothing else may follow; in a slot anything may."""
    assert refusal(APP + b"\xff" * 20 + b"x").code == "image-corrupt"
    assert parse_app_image(APP + b"\xff" * 20 + b"x", trailing=True).total_bytes == len(APP)
    assert parse_app_image(APP + images.noise(9000), trailing=True).size_bytes == len(APP)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_signed_images(blocks: int) -> None:
    """A signature sector belongs to what is written; one of other contents is damage."""
    data = sign(APP, *(key(which=n) for n in range(blocks)))
    for more, trailing in ((b"", False), (b"\xff" * 4096, False), (images.noise(5000), True)):
        image = parse_app_image(data + more, trailing=trailing)
        assert image.signed
        assert image.size_bytes == len(APP)
        assert image.total_bytes == len(data)
        assert image.sha256 == hashlib.sha256(data).digest()
    other = sign(images.app(seed=9), key())
    mixed = data[:-0x1000] + other[-0x1000:]
    assert refusal(mixed).code == "signature-invalid"
    assert not parse_app_image(mixed, trailing=True).signed
    broken = data[:-0x1000] + b"\xe8" + data[-0x1000 + 1 :]
    if blocks > 1:
        assert parse_app_image(broken).signed
    else:
        assert refusal(broken).code == "image-corrupt"


def test_the_first_signature_scheme() -> None:
    """The 68 bytes of secure boot version 1 are taken for a signature in a file only."""
    data = APP + bytes(4) + images.noise(64)
    assert parse_app_image(data).signed
    assert parse_app_image(data).total_bytes == len(data)
    assert not parse_app_image(data, trailing=True).signed


@pytest.mark.parametrize(
    "data", [b"", APP[:287], b"\0" + APP[1:288], APP[:32] + b"?" + APP[33:288], b"\xe9\0" + APP[2:]]
)
def test_a_header_that_is_none(data: bytes) -> None:
    """parse_header is silent about anything but an app's header."""
    assert parse_header(data) is None


@given(st.binary(max_size=400) | st.binary(max_size=400).map(lambda tail: APP[:32] + tail))
def test_any_bytes(data: bytes) -> None:
    """Whatever the bytes: a value or a documented error, for files, slots and Merged Binaries."""
    parse_header(data)
    find_partition_table(data)
    for trailing in (False, True):
        result = outcome(parse_app_image, data, trailing=trailing)
        assert isinstance(result, OtaError)
        assert result.code in IMAGE_CODES
    assert isinstance(outcome(parse_merged, data), OtaError)


@settings(max_examples=60)
@given(
    st.sampled_from([APP, sign(APP, key()), images.merged(images.bootloader(), TABLE, {})]),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=4),
    st.integers(0, 1 << 20),
    st.booleans(),
)
def test_changed_images(
    whole: bytes, changes: list[tuple[int, int]], cut: int, trailing: bool
) -> None:
    """Changed or cut images give a documented error, or are whole still."""
    data = bytearray(whole)
    for place, value in changes:
        data[place % len(data)] = value
    cut_data = bytes(data[: cut % len(data) + 1 if cut % 3 == 0 else len(data)])
    result = outcome(parse_app_image, cut_data, trailing=trailing)
    if isinstance(result, OtaError):
        assert result.code in IMAGE_CODES | {"signature-invalid"}
    else:
        assert cut_data[: result.size_bytes] == APP
    merged = outcome(parse_merged, cut_data)
    assert not isinstance(merged, OtaError) or merged.code in IMAGE_CODES | {
        "partition-table-invalid"
    }


def test_a_large_image_is_checked_quickly() -> None:
    """3.5 MiB are parsed well under a second: runs over many boards check it each time."""
    data = images.app(size=16)
    builder = images.app_builder(size=16)
    builder.segments[0] = (builder.segments[0][0], images.descriptor() + bytes(0x380000 - 256))
    data = builder.build()
    begun = time.process_time()
    assert parse_app_image(data).size_bytes == len(data)
    assert time.process_time() - begun < 1.0
