# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps a board's secrets out of logs: boards may print their NVS strings at start."""

from __future__ import annotations

from collections.abc import Iterable

MIN_SECRET_BYTES = 4
MASK = "***"


class Redactor:
    """Replaces every known secret in a text.

    secrets: the values of a board's NVS strings but `OTA_VERSION`; values shorter than 4 bytes
    are not secrets (design.md, item 9). Longer ones first, so that a secret which contains
    another leaves no rest.
    """

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        texts = {
            secret.decode("utf-8", "replace")
            for secret in secrets
            if len(secret) >= MIN_SECRET_BYTES
        }
        self._secrets = sorted(texts, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """`text` with each secret as `***`."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        return text

    def __repr__(self) -> str:
        return f"Redactor({len(self._secrets)} secrets)"
