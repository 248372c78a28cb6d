# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m ota_service`: the command `esp32-ota`."""

from ota_service.cli.main import main

main()
