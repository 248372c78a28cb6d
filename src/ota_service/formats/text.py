# SPDX-License-Identifier: GPL-3.0-or-later
"""Text out of fixed-size fields: one rule for descriptors and labels, safe to print."""

from __future__ import annotations

import unicodedata


def field_text(raw: bytes) -> str:
    """The text of a NUL-terminated field: UTF-8 up to the NUL, without control characters.

    Bytes that are no UTF-8 become U+FFFD. Control and format characters are removed, so that
    nothing on a board or in a file can forge a line of a log or colour a terminal.
    """
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
