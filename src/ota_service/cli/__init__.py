# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person at a terminal sees."""

from ota_service import linux_only

linux_only()  # before anything is imported that other systems have not
