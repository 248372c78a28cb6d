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
PIECE_CHARS, PIECE_STEP = 12, 4
"""A piece in the middle of a line is found from 15 characters on; ESP_LOG_BUFFER_CHAR prints 16."""
MASK = "***"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
# Bytes as `%02x` prints them, alone or in a dump: "68 75", "68:75", "0x68, 0x75", "\x68\x75".
_BYTE = r"(?:0[xX]|\\x)?[0-9a-fA-F]{2}"
_DUMP = re.compile(rf"{_BYTE}(?:[ ,:\-]{{0,3}}{_BYTE}){{3,}}[0-9a-fA-F]?")
_HEX = re.compile(r"(?:0[xX]|\\x)?([0-9a-fA-F]{2})")
# What ESP-IDF puts before each line: "I (1234) tag: ".
_PREFIX = re.compile(r"\W*[A-Z] \([^)]*\) [^:]*: ")


class Redactor:
    """Replaces every known secret in a line of a log.

    secrets: the values of a board's NVS strings but `OTA_VERSION`; values shorter than 4 bytes
    are not secrets (design.md, item 9). Each is hidden as it is, and in the forms in which
    programs print such values: JSON, percent-encoded, base64 (also as a part of something
    longer, such as `user:secret`), hex and dumps; and so is what of it ends one line and goes on
    in the next, or fills one.
    """

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        raw = {secret for secret in secrets if len(secret) >= MIN_SECRET_BYTES}
        forms = {form for secret in raw for form in _forms(secret) if len(form) >= MIN_SECRET_BYTES}
        self._forms = sorted(forms, key=len, reverse=True)
        self._raw = b"\n".join(raw)
        self._pieces = {
            form[at : at + PIECE_CHARS]: form
            for form in self._forms
            for at in range(0, len(form) - PIECE_CHARS + 1, PIECE_STEP)
        }

    def __call__(self, text: str) -> str:
        """`text` with each secret as `***`."""
        if not self._forms:
            return text
        hidden = bytearray(len(text))
        for begin, end in self._found(text):
            hidden[begin:end] = b"\x01" * (end - begin)
        parts, at = [], 0
        for run in re.finditer(rb"\x01+", hidden):
            parts += [text[at : run.start()], MASK]
            at = run.end()
        return "".join([*parts, text[at:]])

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        for form in self._forms:
            at = text.find(form)
            while at >= 0:
                yield at, at + len(form)
                at = text.find(form, at + 1)
        yield from self._whole_pieces(text)
        yield from self._ends(text)
        for dump in _DUMP.finditer(text):
            yield from self._dumped(dump)

    def _whole_pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """Pieces that are long enough to be nothing else."""
        at = 0
        while at <= len(text) - PIECE_CHARS:
            form = self._pieces.get(text[at : at + PIECE_CHARS])
            if form is None:
                at += 1
                continue
            begin, end = at, at + PIECE_CHARS
            place = form.find(text[begin:end])
            while begin and place and text[begin - 1] == form[place - 1]:
                begin, place = begin - 1, place - 1
            while text[begin : end + 1] in form and end < len(text):
                end += 1
            yield begin, end
            at = end

    def _ends(self, text: str) -> Iterator[tuple[int, int]]:
        """What may be a secret's first part at the line's end, its last part at its begin, or one
        between that fills it. A dump's column of characters is a line of its own."""
        prefix = _PREFIX.match(text)
        column_end = len(text.rstrip(" |"))
        begins = {len(text) - len(text.lstrip()), text.rfind("|", 0, column_end) + 1}
        begins.add(prefix.end() if prefix is not None else 0)
        ends = {len(text.rstrip()), column_end}
        for form in self._forms:
            for end in ends:
                for at in _places(form, text[max(0, end - MIN_SECRET_BYTES) : end]):
                    size = at + MIN_SECRET_BYTES
                    if text.endswith(form[:size], 0, end):
                        yield end - size, end
            for begin in begins:
                for at in _places(form, text[begin : begin + MIN_SECRET_BYTES]):
                    if text.startswith(form[at:], begin):
                        yield begin, begin + len(form) - at
                for end in ends:
                    if end - begin >= MIN_LINE_CHARS and text[begin:end] in form:
                        yield begin, end

    def _dumped(self, dump: re.Match[str]) -> Iterator[tuple[int, int]]:
        """Four bytes in a row that stand in a secret, as they come, behind a digit that makes
        other pairs, and in words of 32 bits, as a panic prints the stack."""
        whole = list(_HEX.finditer(dump[0]))
        words = [one for at in range(0, len(whole), 4) for one in reversed(whole[at : at + 4])]
        for found in (whole, list(_HEX.finditer(dump[0], 1)), words):
            data = bytes(int(one[1], 16) for one in found)
            for at in range(len(data) - MIN_SECRET_BYTES + 1):
                if data[at : at + MIN_SECRET_BYTES] in self._raw:
                    for one in found[at : at + MIN_SECRET_BYTES]:
                        yield dump.start() + one.start(), dump.start() + one.end()


def _places(form: str, part: str) -> Iterator[int]:
    """Where a part of the least length stands in a form."""
    at = form.find(part) if len(part) == MIN_SECRET_BYTES else -1
    while at >= 0:
        yield at
        at = form.find(part, at + 1)


def _forms(secret: bytes) -> Iterator[str]:
    text = secret.decode("utf-8", "replace")
    yield text
    yield _CONTROL.sub("", text).strip()  # as a line of a log has it
    yield quote(secret, safe="")
    yield quote_plus(secret)
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(secret).decode().rstrip("=")
        for before in range(3):  # what belongs to its own bytes alone, behind so many others
            encoded = encode(bytes(before) + secret).decode()
            yield encoded[-(-before * 4 // 3) : (before + len(secret)) * 8 // 6]
    lines = [line.strip() for line in _CONTROL.split(text)]
    if len(lines) > 1:
        yield from (line for line in lines if len(line) >= MIN_LINE_CHARS)
