# SPDX-License-Identifier: GPL-3.0-or-later
"""A board's secrets in a captured log: replaced in every form in which apps print them."""

from __future__ import annotations

import base64
import json
import re
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota_service.update.boot import MAX_LINE_BYTES, BootMonitor, BootRules, Expected
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
    monitor = BootMonitor(Expected(), BootRules(10, 1), redact=Redactor([secret.encode()]))
    for at in range(0, 2 * MAX_LINE_BYTES, 97):
        monitor.feed(b"x" * (97 - len(secret)) + secret.encode(), at / 1e6)
    monitor.feed(b" tail " + secret.encode() + b"\nnext line\n", 1.0)
    shown = "\n".join(monitor.lines)
    for size in range(6, len(secret)):
        assert secret[:size] not in shown
        assert secret[-size:] not in shown
    assert monitor.lines[-1] == "next line"


# --- what a start may print of them: each row is a log, and what is shown of it

PASSWORD = b"correct-horse-battery-staple"
USER = b"robot-17"
KEY = bytes(ord("A") + n % 26 for n in range(70)) + b"=="


def dump(data: bytes, *, column: bool = True, first: int = 0) -> list[str]:
    """As ESP_LOG_BUFFER_HEXDUMP prints it, or ESP_LOG_BUFFER_HEX without the column.

    first: where in its line of 16 bytes it begins, behind dots.
    """
    data = b"." * first + data
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        pairs = " ".join(f"{byte:02x}" for byte in row)
        shown = f"0x3ffb{at:04x}   {pairs[:23]} {pairs[23:]:<24} |{row.decode():<16}|"
        lines.append(f"I (321) app: {shown if column else pairs}")
    return lines


def basic(user: bytes, secret: bytes) -> str:
    """The value of the header Authorization."""
    return base64.b64encode(user + b":" + secret).decode()


def words(data: bytes) -> str:
    """As a panic prints the stack."""
    data = data.ljust(-(-len(data) // 4) * 4, b"\0")
    found = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
    return "3fc8f0a0: " + " ".join(f"0x{word:08x}" for word in found)


LOGS: dict[str, tuple[list[str], str]] = {
    "hex": ([f"key {PASSWORD.hex()}."], "key ***."),
    "hex in capitals": ([f"key {PASSWORD.hex().upper()}."], "key ***."),
    "hex behind a digit": ([f"keya{PASSWORD.hex()}b"], "keya***b"),
    "hex with colons": ([f"key {PASSWORD.hex(':')}"], "key ***"),
    "hex as an array": (["{ " + ", ".join(f"0x{b:02X}" for b in PASSWORD) + " }"], "{ ***"),
    "hex as escapes": (["".join(f"\\x{b:02x}" for b in PASSWORD)], "***"),
    "a dump": (dump(PASSWORD), "0x3ffb0000   ***"),
    "a dump that begins in its line": (dump(PASSWORD, first=9), "2e ***"),
    "a dump without characters": (dump(PASSWORD, column=False, first=3), "app: 2e 2e 2e ***"),
    "characters, 16 a line": (
        [f"I (1) app: {PASSWORD[at : at + 16].decode()}" for at in (0, 16)],
        "I (1) app: ***",
    ),
    "a stack": ([words(b"abc" + PASSWORD)], "3fc8f0a0: "),
    "basic": ([f"Authorization: Basic {basic(b'joe', PASSWORD)}"], "Basic "),
    "basic of another user": ([f"x {basic(b'jo', PASSWORD)} y"], "x "),
    "basic of a third": ([f"x {basic(b'j', PASSWORD)} y"], "x "),
    "basic of two secrets": ([basic(USER, PASSWORD)], "***"),
    "base64 in 76 columns": (
        [base64.b64encode(KEY * 3)[at : at + 76].decode() for at in range(0, 288, 76)],
        "***",
    ),
    "halves": (["pass: correct-horse", "-battery-staple is it"], "pass: ***\n*** is it"),
    "halves behind a prefix": (
        ["I (1) app: correct-h", "I (1) app: orse-battery-staple"],
        "I (1) app: ***\nI (1) app: ***",
    ),
    "thirds": (["correct-ho", "rse-batte", "ry-staple"], "***\n***\n***"),
    "halves of base64": ([basic(b"joe", PASSWORD)[:20], basic(b"joe", PASSWORD)[20:]], "***"),
    "a key in lines of 64": ([KEY[:64].decode(), KEY[64:].decode()], "***\n***"),
    "nothing of it": (["boot: 0x00 1e 2f, horse by horse"], "boot: 0x00 1e 2f, horse by horse"),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGS)
def test_a_log_shows_nothing_of_a_secret(name: str) -> None:
    """In the forms in which ESP-IDF's own functions and common libraries print bytes."""
    lines, seen = LOGS[name]
    watched = BootMonitor(
        Expected(), BootRules(10, 1), redact=Redactor([PASSWORD, USER, KEY, KEY * 3])
    )
    watched.feed("\n".join([*lines, ""]).encode(), 0.1)
    shown = "\n".join(watched.lines)
    assert seen in shown
    if name == "nothing of it":
        assert shown == seen
        return
    pairs = "".join(re.findall("[0-9a-f]{2}", shown.lower().replace("0x", "").replace("\\x", "")))
    letters = "".join(shown.split())
    for secret in (PASSWORD, KEY):
        for at in range(len(secret) - 3):
            part = secret[at : at + 4]
            assert part.decode() not in letters, shown
            assert part.hex() not in pairs, shown
            assert part[::-1].hex() not in pairs, shown
        for form in (base64.b64encode(b"joe:" + secret), base64.b64encode(secret)):
            for at in range(8, len(form) - 12):
                assert form[at : at + 8].decode() not in letters, shown


@given(st.binary(min_size=4, max_size=60), st.text(max_size=30), st.integers(0, 3))
def test_every_byte_string_is_hidden_in_hex_and_base64(raw: bytes, around: str, at: int) -> None:
    """Whatever is around it."""
    redact = Redactor([raw])
    before = around.encode()[:at]
    assert raw.hex() not in redact(f"{around} {raw.hex()} {around}").replace("***", "")
    encoded = base64.b64encode(before + raw).decode()
    inner = base64.b64encode(bytes(len(before)) + raw).decode()[4:-4]
    assert len(inner) < 4 or inner not in redact(f"x {encoded} y")


def test_a_long_line_costs_little() -> None:
    """A board that floods its log with what is nearly a secret holds nothing up."""
    redact = Redactor([bytes(33 + (n * seed) % 90 for n in range(1000)) for seed in range(1, 12)])
    line = "|" * 2000 + "21 22 " * 800 + "abc" * 400
    begun_s = time.thread_time()
    redact(line)
    assert time.thread_time() - begun_s < 0.5
