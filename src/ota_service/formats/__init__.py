# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes in, values out: App Images, partition tables, otadata and NVS; no I/O."""
