# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes App Images and Merged Binaries from what a project builds."""
