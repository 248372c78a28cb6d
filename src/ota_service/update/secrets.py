# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps a board's secrets out of logs: boards may print their NVS strings at start."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

MIN_SECRET_BYTES = 4
MIN_LINE_CHARS = 8
"""Of a line of a longer secret: shorter ones are the brackets of a JSON text and the like."""
MASK = "***"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class Redactor:
    """Replaces every known secret in a text.

    secrets: the values of a board's NVS strings but `OTA_VERSION`; values shorter than 4 bytes
    are not secrets (design.md, item 9). Each is replaced as it is, line by line where it has
    several, and in the forms in which programs print such values: JSON, percent-encoded,
    base64. Longer ones first, so that a secret which contains another leaves no rest.
    """

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        texts = {
            form
            for secret in secrets
            if len(secret) >= MIN_SECRET_BYTES
            for form in _forms(secret)
            if len(form) >= MIN_SECRET_BYTES
        }
        self._secrets = sorted(texts, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """`text` with each secret as `***`."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        return text

    def __repr__(self) -> str:
        return "Redactor()"


def _forms(secret: bytes) -> Iterator[str]:
    text = secret.decode("utf-8", "replace")
    yield text
    yield _CONTROL.sub("", text).strip()  # as a line of a log has it
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    for encoded in (base64.b64encode(secret), base64.urlsafe_b64encode(secret)):
        yield encoded.decode().rstrip("=")
    lines = [line.strip() for line in _CONTROL.split(text)]
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= MIN_LINE_CHARS)
