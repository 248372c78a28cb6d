# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine's service through the Viam SDK, for the command and the page."""
