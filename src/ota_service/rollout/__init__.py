# SPDX-License-Identifier: GPL-3.0-or-later
"""A firmware for many machines, in waves, through the configurations that Viam's app keeps."""
