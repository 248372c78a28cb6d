# SPDX-License-Identifier: GPL-3.0-or-later
"""One board: its port, the link, what is on it, the plan, the steps, the boot."""
