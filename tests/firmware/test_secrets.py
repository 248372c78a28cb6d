# SPDX-License-Identifier: GPL-3.0-or-later
"""A board's secrets in a captured log: replaced in every form in which apps print them."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from ota_service.update.boot import MAX_LINE_BYTES, BootMonitor, Expected
from ota_service.update.secrets import Redactor

SECRET = 'p@ss "wörd"/+='


def test_a_secret_is_hidden_in_its_usual_forms() -> None:
    """Plain, JSON, percent-encoded and base64."""
    redact = Redactor([SECRET.encode()])
    for form in (
        SECRET,
        json.dumps(SECRET)[1:-1],
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
    ):
        assert redact(f"a {form} b").startswith("a ***")
        assert form not in redact(f"a {form} b")


def test_four_bytes_are_a_secret_and_a_longer_one_leaves_no_rest() -> None:
    """Shorter values would blacken a log; one within another would show what is around it."""
    redact = Redactor([b"abcd", b"xyz", b"abcd-efgh"])
    assert redact("abcd xyz") == "*** xyz"
    assert redact("abcd-efgh") == "***"


def test_each_line_of_a_longer_secret_is_hidden() -> None:
    """A log has lines: a private key is printed in many."""
    key = "-----BEGIN KEY-----\nMIIBOgIBAAJBAKj34\nGkxFhD90vcNLYLIn\n}\n-----END KEY-----\n"
    redact = Redactor([key.encode()])
    assert redact("key: MIIBOgIBAAJBAKj34") == "key: ***"
    assert redact("  GkxFhD90vcNLYLIn") == "  ***"
    assert redact("a } b") == "a } b"


@given(st.text(min_size=4, max_size=30).filter(lambda text: "\0" not in text))
def test_no_text_breaks_it(secret: str) -> None:
    """Whatever a board stores, and the text itself is gone where it is printed."""
    raw = secret.encode("utf-8", "replace")
    if len(raw) >= 4:
        text = raw.decode("utf-8", "replace")
        assert text not in Redactor([raw])(f"<{text}>").replace("***", "")


def test_a_secret_in_an_endless_line_is_not_cut_into_showing() -> None:
    """Lines that are too long are dropped from a place on, never shown from within."""
    secret = "correct-horse-battery-staple"
    monitor = BootMonitor(Expected(), 10, 1, redact=Redactor([secret.encode()]))
    for at in range(0, 2 * MAX_LINE_BYTES, 97):
        monitor.feed(b"x" * (97 - len(secret)) + secret.encode(), at / 1e6)
    monitor.feed(b" tail " + secret.encode() + b"\nnext line\n", 1.0)
    shown = "\n".join(monitor.lines)
    for size in range(6, len(secret)):
        assert secret[:size] not in shown
        assert secret[-size:] not in shown
    assert monitor.lines[-1] == "next line"
