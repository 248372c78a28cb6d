# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports, who owns them, resets, esptool and registers: the only room that talks to a chip."""
