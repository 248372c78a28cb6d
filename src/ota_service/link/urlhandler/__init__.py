# SPDX-License-Identifier: GPL-3.0-or-later
"""Url handlers for pyserial that are quicker than its own; found by `serial_port`."""
