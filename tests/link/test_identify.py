# SPDX-License-Identifier: GPL-3.0-or-later
"""A board is known by its MAC, read as its own chip has it."""

from __future__ import annotations

import hashlib
import importlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ota_service.errors import OtaError
from ota_service.link import identify
from ota_service.link.chip import BootKeys

from esptool.targets import CHIP_DEFS  # isort: skip  (after esptool's set-up)
from esptool.targets.esp32 import ESP32ROM  # isort: skip
from esptool.util import FatalError  # isort: skip

ESP32_MAC = bytes.fromhex("240ac4123456")
CHIPS = sorted(set(CHIP_DEFS) - {"esp8266"})


def chip(name: str, words: dict[int, int] | None = None, other: int | None = None) -> Any:
    """esptool's object for a chip whose registers hold `words`, `other`, or else noise."""

    class Chip(CHIP_DEFS[name]):  # type: ignore[misc]
        def __init__(self) -> None:
            self.cache: dict[str, Any] = {"flash_id": 0x1640EF}
            self.reads: list[int] = []

        def read_reg(self, address: int, timeout: float = 3) -> int:
            self.reads.append(address)
            noise = hashlib.sha256(f"{name}{address}".encode()).digest()
            default = int.from_bytes(noise[:4], "little") if other is None else other
            return (words or {}).get(address, default)

        def get_security_info(self, cache: bool = True) -> dict[str, Any]:
            return {"parsed_flags": {"SECURE_BOOT_EN": False}, "flash_crypt_cnt": 0}

    return Chip()


def esp32_words(mac: bytes, name: str = "esp32") -> dict[int, int]:
    """A chip's fuse words that hold a MAC and its CRC on an ESP32."""
    high = identify.mac_crc(mac) << 16 | int.from_bytes(mac[:2], "big")
    at = CHIP_DEFS[name].EFUSE_RD_REG_BASE
    return {at + 8: high, at + 4: int.from_bytes(mac[2:], "big")}


@pytest.mark.parametrize("name", CHIPS)
def test_the_mac_is_the_one_that_esptool_reads_for_this_chip(name: str) -> None:
    """Also where the words that hold the ESP32's MAC look like one, with its right CRC."""
    esp = chip(name, None if name == "esp32" else esp32_words(ESP32_MAC, name))
    theirs = ":".join(f"{byte:02x}" for byte in esp.read_mac("BASE_MAC"))
    assert identify.read_mac(esp) == theirs
    assert name == "esp32" or theirs != ESP32_MAC.hex(":")


@pytest.mark.parametrize("name", CHIPS)
def test_revision_and_fuses_are_the_ones_that_esptool_reads_for_this_chip(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each register is asked for twice at most, however often esptool's functions want it."""
    monkeypatch.setattr("esptool.cmds.detect_flash_size", lambda esp: "8MB")
    esp, same = chip(name), chip(name)
    info = identify.chip_info(esp, f"{name}'s")
    assert info.name == same.CHIP_NAME
    assert info.chip_id == same.IMAGE_CHIP_ID
    assert info.revision == same.get_chip_revision()
    assert info.flash_encrypted == bool(same.get_flash_encryption_enabled())
    assert info.secure_boot == bool(same.get_secure_boot_enabled())
    assert max(map(esp.reads.count, esp.reads), default=0) <= 2


@pytest.mark.parametrize("word", [0x00000000, 0xFFFFFFFF])
@pytest.mark.parametrize("name", CHIPS)
def test_zeros_and_ones_are_no_identity(name: str, word: int) -> None:
    """Every such board would be the same one."""
    with pytest.raises(OtaError) as raised:
        identify.read_mac(chip(name, other=word))
    assert raised.value.code == "no-identity"
    assert ("00:00:00:00:00:00" if word == 0 else "ff:ff:ff:ff:ff:ff") in raised.value.message


def test_an_answer_that_is_not_repeated_is_none() -> None:
    """A byte that was changed on the wire must not make another board of this one."""
    for answers, expected in (([1, 2], None), ([1, 2], 3)):
        with pytest.raises(FatalError):
            identify.twice(iter(answers).__next__, expected)
    assert identify.twice(lambda: 1, None) == identify.twice(lambda: 1, 3) == 1


def test_a_mac_whose_crc_is_wrong_is_read_twice_alike() -> None:
    """As where the fuses were written by hand; the chip's answer counts when it repeats it."""
    words = esp32_words(ESP32_MAC)
    high = ESP32ROM.EFUSE_RD_REG_BASE + 8
    words[high] ^= 0x010000
    esp = chip("esp32", words)
    assert identify.read_mac(esp) == ESP32_MAC.hex(":")
    assert esp.reads.count(high) == 3


@cache
def espefuse_of(name: str) -> tuple[dict[str, dict[str, int]], dict[int, int]]:
    """espefuse's fields of a chip, and the register at which each block is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of click, which espefuse builds upon
        definitions = importlib.import_module(f"espefuse.efuse.{name}.mem_definition")
    folder = Path(definitions.__file__ or "").parents[2] / "efuse_defs"
    text = (folder / f"{name}.yaml").read_text()
    yaml = importlib.import_module("yaml")  # it comes with espefuse
    groups = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    every = (group for group in groups.values() if isinstance(group, dict))
    fields = {key: field for group in every for key, field in group.items()}
    return fields, {block[2]: block[3] for block in definitions.EfuseDefineBlocks.BLOCKS}


def field_of(name: str, wanted: str) -> tuple[int, dict[str, int]]:
    """The register of a field of the fuses, and what espefuse says of it; {} where it has none."""
    fields, blocks = espefuse_of(name)
    field = fields.get(wanted, {})
    return (blocks[field["blk"]] + 4 * field["word"], field) if field else (0, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", CHIPS)
def test_the_keys_of_secure_boot_are_read_where_espefuse_has_them(name: str) -> None:
    """Three digests, of which the second is revoked; one on the chips that keep no more."""
    fields, blocks = espefuse_of(name)
    words: dict[int, int] = {}

    def burn(field: str, value: int) -> None:
        place = fields[field]
        register = blocks[place["blk"]] + 4 * place["word"]
        words[register] = words.get(register, 0) | value << place["pos"]

    def burn_block(number: int, data: bytes) -> None:
        for at in range(0, len(data), 4):
            words[blocks[number] + at] = int.from_bytes(data[at : at + 4], "little")

    digests = [bytes([n + 1]) * 31 + bytes([n]) for n in range(3)]
    expected = BootKeys((digests[0],))
    if name == "esp32":
        words[ESP32ROM.EFUSE_RD_ABS_DONE_REG] = ESP32ROM.EFUSE_RD_ABS_DONE_1_MASK
        burn_block(2, digests[0])
    elif name == "esp32c2":
        burn_block(3, bytes(16) + digests[0][:16])
        expected = BootKeys((digests[0][:16],))
    else:
        purposes = {text: number for number, text in CHIP_DEFS[name].KEY_PURPOSES.items()}
        for digest, place in zip(range(3), (3, 0, 4), strict=True):
            burn(f"KEY_PURPOSE_{place}", purposes[f"SECURE_BOOT_DIGEST{digest}"])
            burn_block(fields[f"BLOCK_KEY{place}"]["blk"], digests[digest])
        burn("SECURE_BOOT_KEY_REVOKE1", 1)
        burn("SECURE_BOOT_AGGRESSIVE_REVOKE", 1)
        expected = BootKeys((digests[0], digests[2]), (digests[1],), True)
    keys = identify._boot_keys(chip(name, words, 0))
    assert keys is not None
    assert set(keys.trusted) == set(expected.trusted)
    assert (keys.revoked, keys.aggressive) == (expected.revoked, expected.aggressive)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHIPS)
def test_the_fuse_blocks_revision_is_read_where_espefuse_has_it(name: str) -> None:
    """Of the chips that have one; all other bits say nothing."""
    words: dict[int, int] = {}
    for wanted, value in (
        ("BLK_VERSION_MAJOR", 2),
        ("BLK_VERSION_MINOR", 5),
        ("DISABLE_BLK_VERSION_MAJOR", 1),
    ):
        register, field = field_of(name, wanted)
        if field:
            mask = ((1 << field["len"]) - 1) << field["pos"]
            words[register] = words.get(register, 0xFFFFFFFF) & ~mask | value << field["pos"]
    found = identify._block_revision(chip(name, words))
    assert found == ((205, True) if words else (None, False))
    assert bool(words) == (name not in ("esp32", "esp32e22"))


@pytest.mark.parametrize("name", CHIPS)
def test_the_secure_version_is_read_where_espefuse_has_it(name: str) -> None:
    """Each step of it burns one more of the chip's own bits; all other bits say nothing."""
    register, field = field_of(name, "SECURE_VERSION")
    for steps in (0, 1, field["len"] // 2, field["len"]):
        bits = (1 << steps) - 1
        ours = bits << field["pos"]
        others = 0xFFFFFFFF ^ ((1 << field["len"]) - 1) << field["pos"]
        for word in (ours, ours | others):
            assert identify._secure_version(chip(name, {register: word}, 0xFFFFFFFF)) == steps
