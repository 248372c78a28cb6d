# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards with Secure Boot v2: what they would not start is refused before anything is written."""

from __future__ import annotations

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

OWN, OTHER, THIRD = key(), key(which=1), key(which=2)
CURVE = key("ECDSA-P-256")
APP = build_app(size_bytes=5_000)


def board(
    chip_id: int, *trusted: bytes, revoked: tuple[bytes, ...] = (), aggressive: bool = False
) -> ChipInfo:
    """A chip with Secure Boot v2 on, and these keys in its fuses."""
    cut = 16 if chip_id == 12 else 32
    keys = BootKeys(
        tuple(digest(pem)[:cut] for pem in trusted), tuple(map(digest, revoked)), aggressive
    )
    name = CHIP_BY_ID[chip_id].name
    return ChipInfo(name, chip_id, "", 301, None, secure_boot=True, boot_keys=keys)


def wrong(data: bytes, which: int = 0) -> bytes:
    """A bit of one signature turned over, with the block's CRC made right again."""
    at = len(data) - SECTOR + BLOCK * which
    return data[:at] + spoilt(data[at : at + BLOCK], 900) + data[at + BLOCK :]


BY_OWN = sign(APP, OWN)
ROWS: list[tuple[str, ChipInfo, bytes, str]] = [
    ("its own key", board(0, OWN), BY_OWN, ""),
    ("no signature", board(0, OWN), APP, "secure-boot"),
    ("a foreign key", board(0, OWN), sign(APP, OTHER), "signature-untrusted"),
    ("a revoked key", board(9, OTHER, revoked=(OWN,)), BY_OWN, "signature-untrusted"),
    ("one of three keys", board(9, THIRD, OTHER, OWN), BY_OWN, ""),
    ("the third of three blocks", board(9, THIRD), sign(APP, OWN, OTHER, THIRD), ""),
    ("the second block, which an ESP32 does not look at", board(0, OTHER),
     sign(APP, OWN, OTHER), "signature-untrusted"),
    ("three blocks with one good", board(5, OWN), wrong(sign(APP, OTHER, OWN, THIRD), 2), ""),
    ("a wrong signature beside a good one", board(5, OWN, OTHER), wrong(sign(APP, OWN, OTHER), 1),
     ""),
    ("the same, where the chip gives keys up", board(5, OWN, OTHER, aggressive=True),
     wrong(sign(APP, OWN, OTHER), 1), "signature-invalid"),
    ("a curve on a chip that takes RSA only", board(9, CURVE), sign(APP, CURVE), "secure-boot"),
    ("a curve", board(13, CURVE), sign(APP, CURVE), ""),
    ("a curve on a C2, which keeps half of a digest", board(12, CURVE), sign(APP, CURVE), ""),
    ("a foreign curve there", board(12, CURVE), sign(APP, key("ECDSA-P-256", 1)),
     "signature-untrusted"),
    ("no key in the fuses", board(9), BY_OWN, "signature-untrusted"),
]  # fmt: skip


@pytest.mark.parametrize(("chip", "data", "code"), [row[1:] for row in ROWS],
                         ids=[row[0] for row in ROWS])  # fmt: skip
def test_what_a_board_starts(chip: ChipInfo, data: bytes, code: str) -> None:
    """The same for a file and for what is in a slot, and as the simulated ROM decides it."""
    for image in (parse_app_image(data), parse_boot_image(data)):
        refused = signature_refusal(image, chip)
        assert (refused.code if refused is not None else "") == code
        assert signature_refusal(image, ChipInfo(chip.name, chip.chip_id, "", 301, None)) is None
    keys = chip.boot_keys
    known = next((one for one in CHIPS.values() if one.id == chip.chip_id), None)
    if known is None or keys is None or code == "secure-boot" or keys.aggressive:
        return
    signed = data[: -(-len(APP) // SECTOR) * SECTOR]
    count = known.signature_blocks
    assert is_signed(signed, data[len(signed) :], keys.trusted, count) is (code == "")


def test_a_wrong_signature_is_no_image() -> None:
    """Of a file of which no block is right; whatever board it is for."""
    with pytest.raises(OtaError, match="block 1 holds a signature that its key did not make"):
        parse_app_image(wrong(BY_OWN))
    assert not parse_boot_image(wrong(BY_OWN)).signed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chip", "owner", "foreign"),
    [("esp32", OWN, OTHER), ("esp32c6", CURVE, key("ECDSA-P-256", 1))],
)
async def test_only_the_owner_updates_a_board(
    tmp_path: Path, chip: str, owner: bytes, foreign: bytes
) -> None:
    """Its bootloader, which judges by espsecure, starts the one that is let through."""

    def build(version: str, *keys: bytes) -> bytes:
        app = build_app(version=version, size_bytes=60_000, chip=chip)
        return sign(app, *keys) if keys else app

    config: dict[str, Any] = {"secure_boot_v2": True, "secure_boot_keys": hexes(owner)}
    sent = {
        "secure-boot": build("2.0.1"),
        "signature-untrusted": build("2.0.2", foreign),
        "signature-invalid": wrong_contents(build("2.0.3", owner)),
    }
    first = build("1.0.0", owner)
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
        url = desk.server.put("/good.bin", build("2.1.0", owner))
        status = await desk.updated("2.1.0", url=url)
        assert status["boards"]["a"]["state"] == "up_to_date", status
        assert control.running()["version"] == "2.1.0"


def wrong_contents(data: bytes) -> bytes:
    """One bit of the padding, which is signed as well."""
    at = len(data) - SECTOR - 1
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
