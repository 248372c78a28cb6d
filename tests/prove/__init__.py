# SPDX-License-Identifier: GPL-3.0-or-later
"""Every interruption of an update, tried: `make prove` (see `docs/reliability.md`)."""
