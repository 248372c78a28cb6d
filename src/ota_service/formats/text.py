# SPDX-License-Identifier: GPL-3.0-or-later
"""Text from boards, files and servers, made safe to print, and in an order for people."""

from __future__ import annotations

import re
import unicodedata

# Controls (C0, DEL, C1), separators of lines, marks of direction, surrogates: they forge lines of
# a log, colour a terminal, and let a text read otherwise than it is. Tags (U+E0000) are not drawn.
UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """`text` with every character that is not seen as it is written as an escape ("\\x1b")."""
    return UNSEEN.sub(lambda found: ascii(found.group())[1:-1], text)


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts "ttyUSB2" before "ttyUSB10"."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", text)]


def field_text(raw: bytes) -> str:
    """The text of a NUL-terminated field: UTF-8 up to the NUL, without control characters.

    Bytes that are no UTF-8 become U+FFFD. Control and format characters are removed, so that
    nothing on a board or in a file can forge a line of a log or colour a terminal.
    """
    text = raw.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
