# SPDX-License-Identifier: GPL-3.0-or-later
"""What a board's log proves."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

BOOT = "tests/update/test_boot.py"

MUTANTS = (
    Mutant(
        "what boot_expect found is kept across a power-on reset",
        "update/boot.py",
        "self.loaded_offset = None\n        self.expectation_met = False",
        "self.loaded_offset = None",
        BOOT,
    ),
    Mutant(
        "what was printed before the app was loaded confirms it",
        "update/boot.py",
        "                self.app_prints = False  # whatever came before was not its\n",
        "",
        BOOT,
    ),
    Mutant(
        "that a bootloader loaded an app confirms it",
        "update/boot.py",
        " and (self.app_prints or self.expectation_met)",
        "",
        BOOT,
    ),
    Mutant(
        "a panic in the middle of a line counts",
        "update/boot.py",
        "starts = _PANIC.match(text) or",
        "starts = _PANIC.search(text) or",
        BOOT,
    ),
    Mutant(
        "a reset line in the middle of a line counts",
        "update/boot.py",
        "if match := _RESET.match(text):",
        "if match := _RESET.search(text):",
        BOOT,
    ),
    Mutant(
        "an app that goes on has panicked all the same",
        "update/boot.py",
        'self._panic, self._panic_at_s, self._decisive = "", None, None\n            return False',
        "return False",
        BOOT,
    ),
    Mutant(
        "a panic is a planned restart",
        "update/boot.py",
        "elif self._panic:\n            self._panicked(now_s)\n        elif cause",
        "elif cause",
        BOOT,
    ),
    Mutant(
        "a watchdog's reset is a planned restart",
        "update/boot.py",
        "elif cause is ResetCause.SOFTWARE and self._restarted < self.rules.restarts:",
        "elif self._restarted < self.rules.restarts:",
        BOOT,
    ),
    Mutant(
        "a wake from sleep starts the watch over",
        "update/boot.py",
        "self.loaded_offset = None  # the bootloader runs again; the app's time goes on",
        "self._start_over(now_s)",
        BOOT,
    ),
    Mutant(
        "the brown-out detector's words are forgotten before the reset",
        "update/boot.py",
        "elif _ROM_HEAD.match(text):\n            self._brown_out = brown_out",
        "elif _ROM_HEAD.match(text):\n            pass",
        BOOT,
    ),
    Mutant(
        "a bootloader that goes back after a power failure speaks against the firmware",
        "update/boot.py",
        "if self.outside_resets and not self._why_not:",
        "if not self.outside_resets and self._why_not:",
        BOOT,
    ),
    Mutant(
        "a board in download mode is merely silent",
        "update/boot.py",
        "if self.in_download and self.shown_at_s is None:",
        "if self.in_download and self.shown_at_s is not None:",
        BOOT,
    ),
    Mutant(
        "what is kept of a failed start is its end",
        "update/boot.py",
        "at = max(0, self._decisive - self._dropped)",
        "at = len(self.lines)",
        BOOT,
    ),
    Mutant(
        "a brown-out speaks against the firmware",
        "update/boot.py",
        "cause = ResetCause.OUTSIDE if brown_out else reset_cause(code)",
        "cause = reset_cause(code)",
        BOOT,
    ),
    Mutant(
        "a brown-out's reset is a watchdog's",
        "formats/chips.py",
        "ResetCause.OUTSIDE: (1, 6, 10, 15, *range(19, 26)),",
        "ResetCause.OUTSIDE: (1, 6, 10, *range(19, 26)),",
        BOOT,
    ),
)
