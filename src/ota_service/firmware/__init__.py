# SPDX-License-Identifier: GPL-3.0-or-later
"""What to write: download, cache and check an App Image."""
