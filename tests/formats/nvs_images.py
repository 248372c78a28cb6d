# SPDX-License-Identifier: GPL-3.0-or-later
"""NVS partitions for the tests, made by Espressif's own generator."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

# Its import of esptool must not read a configuration file from the working directory.
os.environ.setdefault("ESPTOOL_CFGFILE", os.devnull)

from esp_idf_nvs_partition_gen import nvs_partition_gen as gen

# What micro-RDK keeps: (key, encoding, value), all in the namespace VIAM_NS.
MICRO_RDK: tuple[tuple[str, str, str], ...] = (
    ("WIFI_SSID", "string", "shop floor"),
    ("WIFI_PASSWORD", "string", "correct horse battery staple"),
    ("ROBOT_ID", "string", "3d9a4f5c-1111-4222-8333-944445555666"),
    ("ROBOT_SECRET", "string", "s3cr3t-of-the-robot-0123456789"),
    ("ROBOT_APP_ADDR", "string", "https://app.viam.com:443"),
    ("TLS_CERT", "hex2bin", bytes(range(256)).hex() * 6),
    ("TLS_PRIV_KEY", "hex2bin", bytes(range(255, -1, -1)).hex() * 3),
    ("ROBOT_CONFIG", "hex2bin", (b"\xff" * 200 + bytes(range(200))).hex() * 2),
)

Entries = Sequence[tuple[str, Sequence[tuple[str, str, str]]]]


def generated(size: int, entries: Entries, *, version: int = 2) -> bytes:
    """A partition of `size` bytes with (namespace, ((key, encoding, value), ..)) in that order."""
    out = io.BytesIO()
    number = gen.Page.VERSION1 if version == 1 else gen.Page.VERSION2
    with gen.nvs_open(out, size - 0x1000, version=number) as nvs:
        for namespace, items in entries:
            nvs.write_namespace(namespace)
            for key, encoding, value in items:
                nvs.write_entry(key, value, encoding)
    data = out.getvalue()
    assert len(data) == size, (len(data), size)
    return data


def board(size: int = 0x6000, tag: str | None = "1.0.0", *, version: int = 2) -> bytes:
    """A micro-RDK board's NVS, with its version unless `tag` is None, and another namespace."""
    mine = list(MICRO_RDK)
    if tag is not None:
        mine.insert(3, ("OTA_VERSION", "string", tag))
    return generated(
        size,
        [
            ("VIAM_NS", mine),
            ("nvs.net80211", [("sta.ssid", "hex2bin", "0a" * 36), ("ch", "u8", "6")]),
        ],
        version=version,
    )


def encrypted(size: int, folder: Path) -> bytes:
    """A partition with NVS encryption (generated keys)."""
    out = io.BytesIO()
    key = "11" * 32 + "22" * 32
    with gen.nvs_open(
        out, size - 0x1000, version=gen.Page.VERSION2, is_encrypt=True, key=key
    ) as nvs:
        nvs.write_namespace("VIAM_NS")
        for name, encoding, value in MICRO_RDK:
            nvs.write_entry(name, value, encoding)
    return out.getvalue()
