# SPDX-License-Identifier: GPL-3.0-or-later
"""NVS: the board's keys and values, read and changed without losing any.

`parse_nvs` reads a partition as the firmware does, `set_string` and `erase_key` change one key.
"""

from __future__ import annotations

from ota_service.formats.nvs.edit import NvsEdit as NvsEdit
from ota_service.formats.nvs.edit import erase_key as erase_key
from ota_service.formats.nvs.edit import set_string as set_string
from ota_service.formats.nvs.page import Item as Item
from ota_service.formats.nvs.page import Page as Page
from ota_service.formats.nvs.page import PageState as PageState
from ota_service.formats.nvs.read import Nvs as Nvs
from ota_service.formats.nvs.read import parse_nvs as parse_nvs
