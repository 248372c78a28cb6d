# SPDX-License-Identifier: GPL-3.0-or-later
"""Merged Binaries for the tests of `flash`."""

from __future__ import annotations

from typing import Any

from esp32_sim.images import build_app, build_bootloader
from esp32_sim.layouts import Layout, encode_table
from ota_service.building.tables import load_table
from ota_service.formats.merge import merge

PROJECT = "micro-rdk-server"


def merged(
    table: str | Layout = "ota-guide",
    *,
    version: str = "1.0.5",
    flash_mb: int = 4,
    contents: dict[str, bytes] | None = None,
    **options: Any,
) -> bytes:
    """A Merged Binary for a board with so much flash. table: one that is shipped, or any."""
    app = build_app(PROJECT, version, size_bytes=options.pop("size_bytes", 100_000), **options)
    loader = build_bootloader(flash_size_code=flash_mb.bit_length() - 1)
    raw = encode_table(table.partitions) if isinstance(table, Layout) else load_table(table)
    return merge(bootloader=loader, table=raw, app=app, contents=contents).data
