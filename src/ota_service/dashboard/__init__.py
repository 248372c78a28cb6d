# SPDX-License-Identifier: GPL-3.0-or-later
"""A local web page of a service's boards: served without a build step or a foreign resource."""
