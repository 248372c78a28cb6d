# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m esp32_sim`: the simulator's command line."""

from esp32_sim.command import sim

sim(prog_name="python -m esp32_sim")
