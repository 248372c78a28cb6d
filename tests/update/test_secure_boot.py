# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards with Secure Boot v2: what they would not start is refused before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.chips import CHIPS
from esp32_sim.images import build_app
from esp32_sim.process import SimBoard
from esp32_sim.signature import is_signed
from ota_service.errors import OtaError
from ota_service.formats.chips import CHIP_BY_ID
from ota_service.formats.image import parse_app_image, parse_boot_image
from ota_service.link.chip import BootKeys, ChipInfo
from ota_service.update.bootable import signature_refusal
from tests.faults.desk import Desk
from tests.formats.test_signature import spoilt
from tests.support.signing import BLOCK, SECTOR, digest, hexes, key, sign

APP = build_app(size_bytes=5_000)
KEYS = {"r": "RSA-3072", "s": "RSA-3072", **dict.fromkeys("abc", "ECDSA-P-256"),
        "e": "ECDSA-P-384"}  # fmt: skip
ESP32, C2, C5, C6, S3 = 0, 12, 23, 13, 9


def pem(name: str) -> bytes:
    """A private key by its letter: r and s of RSA, a to c of a curve, e of a longer one."""
    return key(KEYS[name], ord(name))


def board(chip_id: int, trusted: str, revoked: str = "", aggressive: bool = False) -> ChipInfo:
    """A chip with Secure Boot v2 on, and these keys in its fuses."""
    cut = 16 if chip_id == C2 else 32
    keys = BootKeys(
        tuple(digest(pem(name))[:cut] for name in trusted),
        tuple(digest(pem(name)) for name in revoked),
        aggressive,
    )
    name = CHIP_BY_ID[chip_id].name
    return ChipInfo(name, chip_id, "", 301, None, secure_boot=True, boot_keys=keys)


def signed(by: str) -> bytes:
    """APP signed by keys; by one in a capital letter wrongly, with the block's CRC right."""
    data = sign(APP, *(pem(name) for name in by.lower())) if by else APP
    for which, name in enumerate(by):
        at = len(data) - SECTOR + BLOCK * which
        if name.isupper():
            data = data[:at] + spoilt(data[at : at + BLOCK], 120) + data[at + BLOCK :]
    return data


ROWS: list[tuple[str, int, str, str, str, str]] = [
    # what, chip, keys that it trusts, that were revoked, who signed, what it is refused for
    ("its own key", ESP32, "r", "", "r", ""),
    ("no signature", ESP32, "r", "", "", "secure-boot"),
    ("a foreign key", ESP32, "r", "", "s", "signature-untrusted"),
    ("a block that an ESP32 does not look at", ESP32, "r", "", "sr", "signature-untrusted"),
    ("a curve on a chip that takes RSA only", S3, "a", "", "a", "secure-boot"),
    ("the second of its keys", S3, "rs", "", "s", ""),
    ("its own key on a curve", C6, "a", "", "a", ""),
    ("a curve that its chip takes", C5, "e", "", "e", ""),
    ("a curve that is too long for its chip", C6, "e", "", "e", "secure-boot"),
    ("that curve beside one that it takes", C6, "ae", "", "ea", ""),
    ("a revoked key", C6, "b", "a", "a", "signature-untrusted"),
    ("one of three keys", C6, "cba", "", "a", ""),
    ("the third of three blocks", C6, "c", "", "abc", ""),
    ("three blocks with one good", C6, "b", "", "AbC", ""),
    ("a wrong signature beside a good one", C6, "ab", "", "aB", ""),
    ("a wrong signature beside a foreign one", C6, "b", "", "aB", "signature-untrusted"),
    ("half of a digest in the fuses", C2, "a", "", "a", ""),
    ("half of another one", C2, "a", "", "b", "signature-untrusted"),
    ("no key in the fuses", C6, "", "", "a", "signature-untrusted"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chip_id", "trusted", "revoked", "by", "code"),
    [row[1:] for row in ROWS],
    ids=[row[0] for row in ROWS],
)
def test_what_a_board_starts(chip_id: int, trusted: str, revoked: str, by: str, code: str) -> None:
    """The same for a file and for what is in a slot, and as the simulated ROM decides it."""
    data, chip = signed(by), board(chip_id, trusted, revoked)
    for image in (parse_app_image(data), parse_boot_image(data)):
        refused = signature_refusal(image, chip)
        assert (refused.code if refused is not None else "") == code
        assert signature_refusal(image, replace(chip, secure_boot=False)) is None
    known = next((one for one in CHIPS.values() if one.id == chip_id), None)
    if known is not None and code != "secure-boot" and chip.boot_keys is not None:
        at = -(-len(APP) // SECTOR) * SECTOR
        keys, count = chip.boot_keys.trusted, known.signature_blocks
        assert is_signed(data[:at], data[at:], keys, count) is (code == "")


def test_a_key_that_the_chip_would_give_up() -> None:
    """With aggressive revocation, a wrong signature that names a trusted key is refused, also
    beside a good one; without, the good one is enough."""
    image = parse_app_image(signed("aB"))
    refused = signature_refusal(image, board(C6, "ab", aggressive=True))
    assert refused is not None
    assert refused.code == "signature-invalid"
    assert signature_refusal(image, board(C6, "a", aggressive=True)) is None


def test_a_wrong_signature_is_no_image() -> None:
    """Of a file of which no block is right; whatever board it is for."""
    with pytest.raises(OtaError, match="block 1 holds a signature that its key did not make"):
        parse_app_image(signed("A"))
    assert not parse_boot_image(signed("A")).signed


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "own", "foreign"), [("esp32", "r", "s"), ("esp32c6", "a", "b")])
async def test_only_the_owner_updates_a_board(
    tmp_path: Path, chip: str, own: str, foreign: str
) -> None:
    """Its bootloader, which judges by espsecure, starts the one that is let through."""

    def build(version: str, by: str = "") -> bytes:
        app = build_app(version=version, size_bytes=60_000, chip=chip)
        return sign(app, pem(by)) if by else app

    config: dict[str, Any] = {"secure_boot_v2": True, "secure_boot_keys": hexes(pem(own))}
    sent = {
        "secure-boot": build("2.0.1"),
        "signature-untrusted": build("2.0.2", foreign),
        "signature-invalid": wrong_contents(build("2.0.3", own)),
    }
    first = build("1.0.0", own)
    async with Desk.start(
        tmp_path, [SimBoard("guide", chip=chip, config=config, app=first)]
    ) as desk:
        control = desk.board().control
        control.start_trace()
        for code, data in sent.items():
            url = desk.server.put(f"/{code}.bin", data)
            status = await desk.updated(code, url=url)
            error = status["boards"]["a"].get("error") or status["error"]
            assert error["code"] == code, status
        assert [op for op in control.stop_trace() if op["who"] == "loader"] == []
        url = desk.server.put("/good.bin", build("2.1.0", own))
        status = await desk.updated("2.1.0", url=url)
        assert status["boards"]["a"]["state"] == "up_to_date", status
        assert control.running()["version"] == "2.1.0"


def wrong_contents(data: bytes) -> bytes:
    """One bit of the padding, which is signed as well."""
    at = len(data) - SECTOR - 1
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
