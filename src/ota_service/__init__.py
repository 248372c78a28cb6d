# SPDX-License-Identifier: GPL-3.0-or-later
"""Updates the firmware of ESP32 boards from the computer that they are attached to."""
