# SPDX-License-Identifier: GPL-3.0-or-later
"""Boards and Merged Binaries of builds whose partition table is not at 0x8000."""

from __future__ import annotations

from esp32_sim.images import build_app, build_bootloader
from esp32_sim.layouts import Layout, Partition
from ota_service.formats.build_table import table_from_csv
from ota_service.formats.merge import merge

PROJECT = "micro-rdk-server"


def layout_at(table_offset: int) -> Layout:
    """NVS, otadata and phy right behind the table, and two OTA slots; 4 MB."""
    at = table_offset + 0x1000
    first = -(-(at + 0x7000) // 0x10000) * 0x10000
    partitions = (
        Partition("nvs", 1, 2, at, 0x4000),
        Partition("otadata", 1, 0, at + 0x4000, 0x2000),
        Partition("phy_init", 1, 1, at + 0x6000, 0x1000),
        Partition("ota_0", 0, 0x10, first, 0x100000),
        Partition("ota_1", 0, 0x11, first + 0x100000, 0x100000),
    )
    return Layout("elsewhere", 4 << 20, partitions)


def merged_at(table_offset: int, *, version: str = "1.0.5") -> bytes:
    """A Merged Binary for a board like that."""
    csv = "nvs,data,nvs,,16K\notadata,data,ota,,8K\nphy_init,data,phy,,4K\n"
    csv += "ota_0,app,ota_0,,1M\nota_1,app,ota_1,,1M\n"
    return merge(
        bootloader=build_bootloader(flash_size_code=2),
        table=table_from_csv(csv, table_offset=table_offset),
        app=build_app(PROJECT, version, size_bytes=60_000),
        table_offset=table_offset,
    ).data
