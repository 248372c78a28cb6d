# SPDX-License-Identifier: GPL-3.0-or-later
"""NVS: the board's keys and values, read and changed without losing any.

`parse_nvs` reads a partition as the firmware does, `set_string` and `erase_key` change one key.
"""

from __future__ import annotations

from ota_service.formats._nvs_edit import NvsEdit, erase_key, set_string
from ota_service.formats._nvs_page import Item, Page, PageState
from ota_service.formats._nvs_read import Nvs, parse_nvs

__all__ = ["Item", "Nvs", "NvsEdit", "Page", "PageState", "erase_key", "parse_nvs", "set_string"]
