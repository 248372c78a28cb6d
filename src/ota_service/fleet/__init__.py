# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs: which boards, in parallel, with retries; the journal and the status."""
