# SPDX-License-Identifier: GPL-3.0-or-later
"""Partition tables for the tests, built by Espressif's table code in the package esp-idf-defs."""

from __future__ import annotations

from esp_idf_defs.partitions import PartitionTable as Judge

OTA_GUIDE = """
nvs,data,nvs,0x9000,0x4000
otadata,data,ota,0xd000,0x2000
phy_init,data,phy,0xf000,0x1000
factory,app,factory,0x10000,1M
ota_0,app,ota_0,0x110000,1M
ota_1,app,ota_1,0x210000,1M
"""
LATER_GUIDE = """
nvs,data,nvs,0x9000,0x6000
otadata,data,ota,0xf000,0x2000
phy_init,data,phy,0x11000,0x1000
ota_0,app,ota_0,0x20000,0x377000
ota_1,app,ota_1,0x3a0000,0x377000
"""
AS_SHIPPED = """
phy_init,data,phy,0x9000,0x1000
otadata,data,ota,0xa000,0x2000
nvs,data,nvs,0xc000,0x14000
ota_0,app,ota_0,0x20000,0x3e0000
ota_1,app,ota_1,0x400000,0x3e0000
coredump,data,coredump,0x7e0000,0x20000
"""
NO_SLOTS = """
nvs,data,nvs,0x9000,0x6000
phy_init,data,phy,0xf000,0x1000
factory,app,factory,0x10000,0x300000
"""
ALL = {
    "ota-guide": OTA_GUIDE,
    "later-guide": LATER_GUIDE,
    "as-shipped": AS_SHIPPED,
    "no-slots": NO_SLOTS,
}


def table_bytes(csv: str) -> bytes:
    """`csv` as ESP-IDF's tool writes it: 0xC00 bytes with MD5 and end marker."""
    return bytes(Judge.from_csv(csv).to_binary())
