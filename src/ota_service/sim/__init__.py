# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated ESP32: a board for tests and demonstrations, without hardware."""
