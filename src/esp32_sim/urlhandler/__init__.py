# SPDX-License-Identifier: GPL-3.0-or-later
"""Where pyserial looks for the scheme `esp32sim://`.

serial.protocol_handler_packages.append("esp32_sim.urlhandler")
port = serial.serial_for_url("esp32sim:///absolute/path/of/a/board")
"""
