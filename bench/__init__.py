# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark: what an update costs, beside what physics asks and what scripts take."""
