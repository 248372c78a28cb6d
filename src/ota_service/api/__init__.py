# SPDX-License-Identifier: GPL-3.0-or-later
"""The package for programs in Python; what is public of it stands in `ota_service` itself."""
