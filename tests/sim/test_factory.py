# SPDX-License-Identifier: GPL-3.0-or-later
"""Ready-made boards are what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from esptool.bin_image import LoadFirmwareImage

from esp32_sim.bootmodel import boot
from esp32_sim.config import BoardConfig
from esp32_sim.factory import create_board, default_nvs, make_flash, otadata_entries
from esp32_sim.images import build_app
from esp32_sim.layouts import LAYOUTS

OLD = build_app("robot", "1.0.0", size_bytes=20_000)
NEW_APP = build_app("robot", "2.0.0", size_bytes=20_000)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_boots_its_first_app(layout: str) -> None:
    """Without any option: factory where there is one, else ota_0."""
    result = boot(make_flash(layout))
    assert result.partition == LAYOUTS[layout].first_app()


@pytest.mark.parametrize(
    ("layout", "state", "rollback", "slot"),
    [
        ("guide", "updated", False, "ota_1"),
        ("guide", "new", True, "ota_1"),
        ("guide", "pending", True, "ota_0"),
        ("guide", "pending", False, "ota_1"),
        ("guide", "aborted", True, "ota_0"),
        ("guide", "invalid", False, "ota_0"),
        ("guide", "valid", True, "ota_1"),
        ("guide", "blank", False, "factory"),
        ("micro-rdk", "updated", False, "ota_1"),
        ("micro-rdk", "first-boot", False, "ota_1"),
        ("micro-rdk", "blank", False, "ota_0"),
    ],
)
def test_otadata_states(layout: str, state: str, rollback: bool, slot: str) -> None:
    """An app in ota_1, the one before in ota_0, and otadata as its name says."""
    flash = make_flash(
        layout, app=NEW_APP, slot="ota_1", other_app=OLD, other_slot="ota_0", otadata=state
    )
    if layout == "guide":
        at = LAYOUTS[layout].find("factory").offset
        flash[at : at + len(OLD)] = OLD
    assert boot(flash, rollback=rollback).slot == slot


def test_an_unknown_otadata_state() -> None:
    """A misspelt state is an error."""
    with pytest.raises(KeyError):
        otadata_entries("nwe", 1, 2, has_factory=False)


@pytest.mark.parametrize("mib", [4, 8, 16])
def test_flash_sizes(mib: int) -> None:
    """The guide's table fits from 4 MiB on; the bootloader's header says the size."""
    flash = make_flash("guide", mib << 20)
    assert len(flash) == mib << 20
    header = LoadFirmwareImage("esp32", bytes(flash[0x1000:0x8000]))
    assert header.flash_size_freq >> 4 == {4: 2, 8: 3, 16: 4}[mib]
    assert boot(flash).slot == "factory"


def test_what_does_not_fit() -> None:
    """An app larger than its slot, a table larger than the flash."""
    with pytest.raises(ValueError, match="do not fit into factory"):
        make_flash("guide", app=build_app(size_bytes=0x101000))
    with pytest.raises(ValueError, match="do not fit into the flash"):
        make_flash("micro-rdk-8mb", 1 << 20, slot="ota_1", app=OLD)


def test_secrets_differ_from_board_to_board() -> None:
    """Another seed, other secrets; the same seed, the same."""
    assert default_nvs(seed=1) == default_nvs(seed=1)
    assert default_nvs(seed=1)["ROBOT_SECRET"] != default_nvs(seed=2)["ROBOT_SECRET"]


def test_settings_survive_their_file(tmp_path: Path) -> None:
    """A board's directory holds all of its settings."""
    config = BoardConfig(mac="24:0a:c4:01:02:03", revision=(1, 0), rollback=True, timed=True)
    create_board(tmp_path / "board", make_flash("no-ota"), config)
    assert BoardConfig.load(tmp_path / "board") == config
    assert BoardConfig.load(tmp_path) == BoardConfig()
