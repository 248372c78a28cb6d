# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person at a terminal sees."""
