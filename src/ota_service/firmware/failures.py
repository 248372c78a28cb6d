# SPDX-License-Identifier: GPL-3.0-or-later
"""How a download can fail so that a later one may not."""

from __future__ import annotations

from ota_service.errors import OtaError


class Transient(Exception):
    """A failure that a further attempt may mend. error: what to tell where none does."""

    def __init__(self, error: OtaError, *, after_s: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        # The least time to wait, where the server asked for one.
        self.after_s = after_s


class GaveUp(OtaError):
    """A download that ended by a failure that may pass: the same one may succeed later."""


class NotThere(GaveUp):
    """Nothing is wrong with the way to the file, which may be published one day."""


def is_retried(status: int) -> bool:
    """Whether the same request may be answered otherwise a moment later.

    RFC 6585, section 4; RFC 9110, section 15.5.9.
    """
    return status >= 500 or status in (408, 425, 429)
