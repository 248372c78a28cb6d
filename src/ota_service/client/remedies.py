# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person at a terminal, or at a bench's page, does about an error.

The table of errors speaks to those who configure the service; a person who called this command
has a file and a port before them, and perhaps neither a configuration nor the Makefile. On the page
of a bench files are dropped, and its buttons are pressed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ota_service.errors import ERRORS, OtaError

_IMAGE = (
    "Give an App Image: `esp32-ota image ota FILE` makes one of the build's ELF file, and "
    "`esp32-ota image inspect FILE` says what a file is."
)
_FLASH = "write a Merged Binary with `esp32-ota flash PORT FILE`"

REMEDIES: dict[str, str] = {
    "not-an-image": _IMAGE,
    "bootloader-image": _IMAGE,
    "no-app-descriptor": "Build the app with ESP-IDF 3.3 or later; `esp32-ota image ota FILE` "
    "makes its App Image.",
    "image-corrupt": "Build the App Image again, or copy it once more.",
    "merged-binary": "Give an App Image (`esp32-ota image ota FILE` makes one). A Merged Binary is "
    "written with `esp32-ota flash PORT FILE`.",
    "download-truncated": "Check the network and the firmware's server, then try again.",
    "download-too-large": "Check that the url serves an App Image.",
    "digest-mismatch": "Correct --sha256, or give the file that it belongs to.",
    "tls": "For a private certificate authority give --ca-file; otherwise check the server's "
    "certificate and this machine's clock.",
    "wrong-chip": "Give an image that was built for this board's chip.",
    "not-staged": "Call `esp32-ota stage`, which looks at what the board has and writes what is "
    "missing, or `esp32-ota update`.",
    "stage-stale": "Give --file or --url and --version as they were given to `esp32-ota stage`, or "
    "stage it anew.",
    "no-board": "Attach a board; `esp32-ota ports` lists what is there.",
    "duplicate-board": "Name each board once.",
    "port-busy": "Close the program named.",
    "permission": "Add this user to the port's group (dialout or uucp), then log in again.",
    "no-answer": "Check the cable and the board's power; a board without automatic reset needs "
    "its BOOT button held meanwhile.",
    "link-lost": "Check the cable and the USB hub, then call the command again: it starts from "
    "what it finds on the board.",
    "otadata-invalid": "Restart the board and see whether it boots. If nothing on it does, "
    f"`esp32-ota update PORT` with --rescue --confirm MAC writes the firmware; or {_FLASH}.",
    "board-boots": "Call the command again without --rescue.",
    "other-project": "Name the board's port if it is meant, or call `esp32-ota update` again with "
    "--override other-project.",
    "not-allowed-now": "Wait until the robot allows it, or call `esp32-ota remote update` with "
    "--override not-allowed-now.",
    "stopped": "Correct the firmware and give it another version; --override stopped gives this "
    "one to the boards all the same.",
    "secure-version": "Give an image with the same or a higher secure version.",
    "awaiting-confirmation": "Wait two minutes, then call the command again.",
    "boot-failed": "Correct the firmware, then call the command again.",
    "no-reset": "Press the board's reset button with BOOT released, and wire DTR and RTS of its "
    "port to IO0 and EN if they are not; then call the command again to have its start watched.",
    "brown-out": "Check the power supply, the cable and the USB hub, then call the command again: "
    "it watches the start once more.",
    "backup-invalid": "Name a folder that `esp32-ota backup` has made, or one that "
    "`esp32-ota flash` has named.",
    "cancelled": "Call the command again to start over.",
    "internal": "Please report this, with what ESP32_OTA_DEBUG=1 shows in addition; the board "
    "keeps what it had.",
}
"""By code, for a terminal."""

_DROP = (
    "Drop an App Image (`esp32-ota image ota FILE` makes one of the build's ELF file), a manifest "
    "or a Merged Binary."
)
_AGAIN = "Correct the firmware and drop it with another version"
ON_A_BENCH: dict[str, str] = {
    **{code: REMEDIES[code] for code in ("no-board", "port-busy", "permission", "no-answer")},
    "config-invalid": "Correct what is named, then try again.",
    "not-an-image": _DROP,
    "bootloader-image": _DROP,
    "no-app-descriptor": "Build the app with ESP-IDF 3.3 or later, and drop its App Image.",
    "image-corrupt": "Build it again, and drop that.",
    "manifest-invalid": "Correct it at the path that is named, and drop it again.",
    "digest-mismatch": "Drop the very file that is meant.",
    "wrong-chip": "Drop an image that was built for this board's chip.",
    "secure-version": "Drop an image with the same or a higher secure version.",
    "stage-stale": "Stage it again, or drop the firmware that is staged.",
    "other-project": "Select the board by itself if it is meant.",
    "boot-failed": f"Look at the boot log in the history. {_AGAIN}.",
    "stopped": f"{_AGAIN}, or press Release to let this one be tried again.",
}
"""By code, in the words of a bench's page."""


@dataclass(frozen=True, slots=True)
class Words:
    """How one of them speaks. remedies: by code; what is not there is said as in the table of
    errors. texts: what texts from below say of the service, and what is said instead."""

    remedies: Mapping[str, str]
    texts: tuple[tuple[re.Pattern[str], str], ...]


TERMINAL = Words(REMEDIES, ((re.compile(r"\bkeep_nvs\b"), "`--keep-nvs` (with make: KEEP_NVS=1)"),))
BENCH = Words(
    ON_A_BENCH,
    (
        (re.compile("Configure a new version, or call release for this board"),
         f"{_AGAIN}, or press Release"),
        (re.compile("Configure the version that the board is to run; to try that one again, call "
                    "release, then update"),
         "Drop the firmware that the board is to run; to try that one again, press Release, then "
         "Update"),
    ),
)  # fmt: skip


def remedy_of(code: str, remedy: str, words: Words = TERMINAL) -> str:
    """What to do about an error here. A remedy that is more precise than the table's stays."""
    general = code in ERRORS and remedy == ERRORS[code].remedy
    return own_text(words.remedies.get(code, remedy) if general else remedy, words)


def own_text(text: str, words: Words = TERMINAL) -> str:
    """A text from below in these words."""
    for pattern, own in words.texts:
        text = pattern.sub(own, text)
    return text


def line_of(error: OtaError) -> str:
    """An error in one line, as this command says it."""
    where = f"{error.board}: " if error.board else ""
    message = own_text(error.message)
    return f"{where}{message} {remedy_of(error.code, error.remedy)} [{error.code}]"


def own_words(value: Any, words: Words = TERMINAL) -> Any:
    """A reply of the service with the remedy of these words at each error in it."""
    if isinstance(value, list | tuple):
        return [own_words(item, words) for item in value]
    if not isinstance(value, Mapping):
        return value
    own = {key: own_words(item, words) for key, item in value.items()}
    if {"code", "message", "remedy"} <= own.keys():
        own["message"] = own_text(own["message"], words)
        own["remedy"] = remedy_of(own["code"], own["remedy"], words)
    return own
