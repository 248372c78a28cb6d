# SPDX-License-Identifier: GPL-3.0-or-later
"""A failure that the command tells in one line and ends with exit code 1."""

from __future__ import annotations

from ota_service.firmware.secrets import hide
from ota_service.formats.text import visible


class Failure(Exception):
    """What happened, and what to do about it, in which libraries and servers may have had a word:
    without secrets, and as it is seen.

    code: of the error table.
    """

    def __init__(self, message: str, remedy: str = "", *, code: str) -> None:
        self.message = visible(hide(message))
        self.remedy = remedy
        self.code = code
        super().__init__(self.message)

    @property
    def unreachable(self) -> bool:
        """Whether nobody answered, so that asking again later may help."""
        return self.code == "unreachable"

    def __str__(self) -> str:
        return " ".join(part for part in (self.message, self.remedy, f"[{self.code}]") if part)

    def to_dict(self) -> dict[str, str]:
        """{"message", "remedy", "code"}, without those that are empty."""
        values = {"message": self.message, "remedy": self.remedy, "code": self.code}
        return {key: value for key, value in values.items() if value}
