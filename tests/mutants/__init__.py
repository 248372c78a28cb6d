# SPDX-License-Identifier: GPL-3.0-or-later
"""Small semantic changes of critical code, and the tests that are meant to notice each."""
