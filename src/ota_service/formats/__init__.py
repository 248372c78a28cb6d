# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes in, values out: App Images, partition tables, otadata and NVS; no I/O.

`__all__` is what other programs may rely on (docs/python.md).
"""

from ota_service.formats.image import AppDescriptor, AppImage, parse_app_image
from ota_service.formats.merged import MergedBinary, parse_merged
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.formats.otadata import OtaData, OtaEntry, OtaState, parse_otadata
from ota_service.formats.partitions import Partition, PartitionTable, parse_partition_table

__all__ = [
    "AppDescriptor",
    "AppImage",
    "MergedBinary",
    "Nvs",
    "OtaData",
    "OtaEntry",
    "OtaState",
    "Partition",
    "PartitionTable",
    "parse_app_image",
    "parse_merged",
    "parse_nvs",
    "parse_otadata",
    "parse_partition_table",
]
