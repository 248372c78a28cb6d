# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m ota_service.sim`: the simulator's command line."""

import sys

from ota_service.sim.server import main

sys.exit(main())
