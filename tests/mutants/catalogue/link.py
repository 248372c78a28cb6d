# SPDX-License-Identifier: GPL-3.0-or-later
"""What is believed of a chip, and what is shown of it."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

REGISTERS = "tests/link/test_spi.py"

MUTANTS = (
    Mutant(
        "an operation is not read back",
        "link/flash.py",
        "if flash.md5(op.offset, len(op.data)) == digest(wanted):",
        "if flash.md5(op.offset, len(op.data)):",
        "tests/update/test_flash.py",
    ),
    Mutant(
        "an erase is not read back",
        "link/flash.py",
        "if flash.md5(op.offset, op.size_bytes) != blank_digest(op.size_bytes):",
        "if not flash.md5(op.offset, op.size_bytes):",
        "tests/update/test_flash.py",
    ),
    Mutant(
        "registers are not looked at before a command starts",
        "link/spi.py",
        "if found != [value for _, value, _, _ in looked_at]:",
        "if len(found) != len(looked_at):",
        f"{REGISTERS}::test_a_bit_that_was_changed_in_any_register_does_nothing_elsewhere",
    ),
    Mutant(
        "a program is taken for done while the flash is busy",
        "link/spi.py",
        "        while busy:\n",
        "        while busy and time.monotonic() > limit_s:\n",
        REGISTERS,
    ),
    Mutant(
        "flash above 16 MiB gets addresses of 3 bytes",
        "link/spi.py",
        "bits = 24 if address < SHORT_REACH_BYTES else 32",
        "bits = 24",
        REGISTERS,
    ),
    Mutant(
        "every chip's stub loader is taken to reach all of its flash",
        "link/chip.py",
        "if end > SHORT_REACH_BYTES and not (known is not None and known.wide_flash):",
        "if end > SHORT_REACH_BYTES and known is None:",
        "tests/update/test_running.py::test_a_board_with_what_counts_above_16_mib",
    ),
    Mutant(
        "answers that are late are taken for those to the next requests",
        "link/registers.py",
        "            self._come_to_rest()\n",
        "",
        "tests/link/test_registers.py"
        "::test_requests_that_get_no_answer_are_tried_smaller_then_singly",
    ),
    Mutant(
        "a cable that was pulled slows its port",
        "link/link.py",
        "while cause is not None and not isinstance(cause, (OSError, termios.error)):",
        "while cause is not None:",
        "tests/link/test_start.py::test_a_cable_that_was_pulled_is_no_speed",
    ),
    Mutant(
        "an answer of the chip is believed at once",
        "link/identify.py",
        "if first != expected and read() != first:",
        "if first != expected and read() is None:",
        "tests/link/test_identify.py",
    ),
    Mutant(
        "other chips' MACs are read as the ESP32's",
        "link/identify.py",
        "mac = _checked_mac(esp) if esp.CHIP_NAME == ESP32ROM.CHIP_NAME else None",
        "mac = _checked_mac(esp) if isinstance(esp, ESP32ROM) else None",
        "tests/link/test_identify.py",
    ),
    Mutant(
        "zeros are a MAC",
        "link/identify.py",
        "if set(mac) in ({0x00}, {0xFF}):",
        "if set(mac) in ({0xFF},):",
        "tests/link/test_identify.py",
    ),
    Mutant(
        "another board that got the name is taken for the one that had it",
        "link/ports.py",
        "        return before.mac == now.mac\n",
        "        return before.device == now.device\n",
        "tests/link/test_attachment.py::test_two_boards_that_swap_their_names",
    ),
    Mutant(
        "a port that goes again and again speaks for the firmware",
        "update/boot.py",
        'self._unexplained_reset("its port went away", now_s)',
        "self._start_over(now_s)",
        "tests/update/test_native_usb.py::test_a_port_that_goes_again_and_again",
    ),
    Mutant(
        "a board that was left with BOOT held stays in download mode",
        "link/resets.py",
        "            if in_download:\n                self._reset()\n",
        "            if in_download:\n                self._let_go()\n",
        "tests/link/test_resets.py::test_killed_at_each_edge",
    ),
    Mutant(
        "a protected part of the flash is one too small",
        "link/flash.py",
        "return offset + size_bytes > self.flash_bytes - covered",
        "return offset > self.flash_bytes - covered",
        "tests/update/test_flash.py",
    ),
    Mutant(
        "secrets of four bytes are shown",
        "update/secrets.py",
        "in secrets if len(secret) >= MIN_SECRET_BYTES}",
        "in secrets if len(secret) > MIN_SECRET_BYTES}",
        "tests/update/test_secrets.py",
    ),
    Mutant(
        "a dump of a secret is shown",
        "update/secrets.py",
        "for found in (whole, list(_HEX.finditer(dump[0], 1)), words):",
        "for found in (words,):",
        "tests/update/test_secrets.py",
    ),
    Mutant(
        "what goes on in the next line is shown",
        "update/secrets.py",
        "if text.startswith(form[at:], begin):",
        "if text.startswith(form, begin):",
        "tests/update/test_secrets.py",
    ),
)
