# SPDX-License-Identifier: GPL-3.0-or-later
"""NVS: the board's keys and values, read and changed without losing any."""

from __future__ import annotations

from ota_service.formats._nvs_page import Item, Page, PageState
from ota_service.formats._nvs_read import Nvs, parse_nvs

__all__ = ["Item", "Nvs", "Page", "PageState", "parse_nvs"]
